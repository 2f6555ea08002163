"""Two models behind one gateway, as `tandem up` starts them: what happens to one does not touch the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.gateway.byte_model import make_byte_model
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import body, events, prompt_of
from tests.support.system.system import running_system

PACE = ("--engine-arg", "decode_us_per_step=10000")
NEW_TOKENS = 200
"""Two seconds of an answer."""


async def test_the_end_of_one_models_workers_is_not_felt_by_the_other(tmp_path: Path, oracle: Oracle) -> None:
    other = make_byte_model(tmp_path / "bytes")
    prompt = prompt_of(40)
    with running_system(tmp_path, "--engine", "mock", "--model", str(other), *PACE) as system:
        workers = {name: list(member.info.models) for name, member in (await system.members()).items()}
        assert workers == {
            "prefill-0": ["tandem-tiny"],
            "decode-0": ["tandem-tiny"],
            "prefill-1": ["bytes"],
            "decode-1": ["bytes"],
        }
        async with system.client() as client:
            listed = (await client.get("/v1/models")).json()["data"]
            assert [one["id"] for one in listed] == ["bytes", "tandem-tiny"]
            begun = asyncio.Event()

            async def stays() -> list[int]:
                last: list[int] = []
                async for event in events(client, "/generate", {**body(prompt, NEW_TOKENS), "model": "tandem-tiny"}):
                    assert "error" not in event, event
                    last = event["output_ids"]
                    begun.set()
                return last

            running = asyncio.create_task(stays())
            await begun.wait()
            lost = {"model": "bytes", "prompt": "abc", "max_tokens": NEW_TOKENS, "stop": ["never"]}
            victim = events(client, "/v1/completions", lost)
            await anext(victim)
            for name in ("prefill-1", "decode-1"):
                system.kill(name)
            assert "error" in [event async for event in victim][-1]
            assert await running == oracle.predict(prompt, NEW_TOKENS).tokens
            # They come back; until then clients are told to wait.
            while (after := await client.post("/v1/completions", json={**lost, "max_tokens": 4})).status_code != 200:
                assert after.status_code in (502, 503), after.text
                await asyncio.sleep(int(after.headers.get("Retry-After", 1)))
            assert after.json()["usage"]["prompt_tokens"] == 3
        assert system.state.row("decode-0").restarts == system.state.row("prefill-0").restarts == 0
