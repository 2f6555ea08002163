"""One SglangEngine in a process: commands come as JSON lines on stdin, news go out as JSON lines on stdout.

Run as `python -m tests.support.sglang.worker prefill|decode '{"model_path": ...}'`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from typing import Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Nonce, RankId, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.room.events import Why
from tandem.engine.port import Delta, EngineFacts, Job, LogprobOptions, Sampling
from tandem.engine.sglang.arguments import SglangOptions
from tandem.engine.sglang.engine import SglangEngine

# SGLang prints, too: keep the channel to ourselves, and let its output go to stderr.
_channel = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def say(**news: Any) -> None:
    """Tells the test."""
    print(json.dumps(news), file=_channel, flush=True)


def life(name: str) -> WorkerLife:
    """The life of a worker of this test."""
    return WorkerLife(WorkerId(name), Incarnation(1))


def job_of(command: dict[str, Any]) -> Job:
    """A command as a Job."""
    loop = asyncio.get_running_loop()
    return Job(
        request_id=RequestId(f"request-{command['room']}"),
        room=RoomId(command["room"]),
        nonce=Nonce(bytes.fromhex(command["nonce"])),
        peer=life(command["peer"]),
        peer_addresses={RankId(tp=tp): address for tp, address in enumerate(command.get("addresses", []))},
        deadline=loop.time() + command.get("timeout_ms", 60_000) / 1000,
        input_ids=command["input_ids"],
        sampling=Sampling(**command["sampling"]),
        logprobs=LogprobOptions(**command["logprobs"]) if command.get("logprobs") else None,
        early_first_token=command.get("early_first_token", False),
    )


def news_of(delta: Delta) -> dict[str, Any]:
    """A Delta as JSON."""
    news = dataclasses.asdict(delta)
    if delta.finish is not None:
        news["finish"]["kind"] = delta.finish.kind.value
        if delta.finish.why is not None:
            news["finish"]["why"] = [delta.finish.why.reason.value, delta.finish.why.message]
    return news


async def obey(engine: SglangEngine, command: dict[str, Any]) -> None:
    """Carries out one command."""
    match command["do"]:
        case "submit":
            try:
                await engine.submit(job_of(command), lambda delta: say(news="delta", **news_of(delta)))
            except TandemError as error:
                say(news="refused", room=command["room"], reason=error.reason.value, message=error.message)
        case "abort":
            found = await engine.abort(RoomId(command["room"]), Why(ErrorReason.CANCELLED, "the test cancels"))
            say(news="aborted", room=command["room"], found=found)
        case "joined":
            addresses = {RankId(tp=tp): address for tp, address in enumerate(command["addresses"])}
            engine.peer_joined(life(command["peer"]), addresses)
        case "gone":
            engine.peer_gone(life(command["peer"]))
        case "switch":
            facts = await engine.switch(Role(command["role"]))
            engine.identify(life(command["role"]))
            started(facts)
        case "status":
            status = dataclasses.asdict(await engine.status())
            moved = {"=".join(key): size for key, size in status.pop("traffic").items()}
            del status["moving_us"]
            say(news="status", traffic=moved, **status)


def started(facts: EngineFacts) -> None:
    """Tells what the engine is."""
    say(
        news="started",
        addresses=[rank.kv_link_address for rank in facts.ranks],
        facts={
            "model": facts.model,
            "context_tokens": facts.context_tokens,
            "max_running": facts.max_running,
            "total_pages": facts.total_pages,
            "layout": dataclasses.asdict(facts.layout),
        },
    )


async def main() -> int:
    """Runs until stdin ends, or the engine fails: then the exit code is 3."""
    role, options = Role(sys.argv[1]), SglangOptions(**json.loads(sys.argv[2]))
    engine = SglangEngine(role, options)
    try:
        facts = await engine.start()
        engine.identify(life(role.value))
        started(facts)
        reader = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        failed = asyncio.ensure_future(engine.wait_failed())
        while True:
            line = asyncio.ensure_future(reader.readline())
            await asyncio.wait([line, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                say(news="failed", message=failed.result().message)
                return 3
            if not line.result():
                failed.cancel()
                return 0
            await obey(engine, json.loads(line.result()))
    except TandemError as error:
        say(news="failed", message=str(error))
        return 3
    finally:
        await engine.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
