"""The gateway as a process of its own, on uvloop: starts, serves, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

import httpx

from tandem.rpc.client import open_channel
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.gateway.cluster import bootstrap_here, workers_at
from tests.support.gateway.fake_worker import MODEL, end_of, hand_over, tokens_of
from tests.support.gateway.process import START_S, gateway_process
from tests.support.settings import environment


async def test_sigterm_lets_a_running_answer_end() -> None:
    go_on = asyncio.Event()

    async def in_two_parts(submit, send) -> None:  # type: ignore[no-untyped-def]
        send(tokens_of(submit, 0))
        await go_on.wait()
        send(tokens_of(submit, 1))
        send(end_of(submit))

    async with bootstrap_here() as address, open_channel(address) as channel:
        stub = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        async with (
            workers_at(stub, [hand_over], [in_two_parts]) as (prefills, decodes),
            gateway_process(address) as (child, http),
        ):
            for one in [*prefills, *decodes]:
                await one.wait_until(lambda worker: worker.sessions == 1)
            async with httpx.AsyncClient(base_url=f"http://{http}", timeout=30) as client:
                body = {"model": MODEL, "prompt": "hello", "max_tokens": 2, "stream": True}
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    pieces = response.aiter_bytes()
                    got = await anext(pieces)
                    child.send_signal(signal.SIGTERM)
                    await decodes[0].wait_until(lambda worker: worker.sessions == 1)
                    go_on.set()
                    got += b"".join([piece async for piece in pieces])
            assert b'"t1 "' in got
            assert got.endswith(b"data: [DONE]\n\n")
            assert await asyncio.wait_for(child.wait(), 30) == 0


async def test_a_missing_tokenizer_is_said_and_ends_the_process() -> None:
    settings = {"TANDEM_GATEWAY_MODEL_PATH": "does/not/exist", "TANDEM_GATEWAY_PORT": "0"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem.gateway", stderr=asyncio.subprocess.PIPE, env=environment(**settings)
    )
    _, log = await asyncio.wait_for(child.communicate(), START_S)
    assert child.returncode == 2
    assert b"No tokenizer can be loaded from 'does/not/exist'" in log
