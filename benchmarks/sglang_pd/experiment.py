"""One fault on one side: requests in flight, the strike, requests right after it, and when all serve again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection, Sequence
from typing import Final

import httpx
import psutil

from benchmarks.sglang_pd.asking import Asked, ask
from benchmarks.sglang_pd.cells import BACK_LIMIT_S, Back, Blow, How, Result
from benchmarks.sglang_pd.sides import Side, scheduler
from tests.support.faults.load import Outcome

STREAMED: Final = (True, True, False, False)
"""Of the requests in flight: workers take turns, so each has one that streams and one that does not."""
SAID: Final = 3
"""Tokens that each stream has said when the fault strikes."""
LATE: Final = 4
LATE_TOKENS: Final = 16
PROBES: Final = 4
"""Sent at once: each worker gets two."""
PROBE_TOKENS: Final = 4
PROBE_LIMIT_S: Final = 10.0
PROBE_EVERY_S: Final = 0.5
START_LIMIT_S: Final = 240.0
"""Longest start of a worker that is waited for."""
MOMENT_TIMEOUT_S: Final = 60.0
PROMPTS: Final = len(STREAMED) + LATE + PROBES
STOPPED_S: Final = 5.0
Known = Sequence[tuple[list[int], list[int]]]
"""Prompts with their right answers."""


async def strike(side: Side, side_name: str, blow: Blow, known: Known) -> Result:
    """Strikes an idle system. known: PROMPTS prompts with their right answers.

    Raises TimeoutError if the streams do not begin.
    """
    first, late, probes = known[: len(STREAMED)], known[len(STREAMED) : len(STREAMED) + LATE], known[-PROBES:]
    in_flight = [Asked(prompt, tokens, stream) for (prompt, tokens), stream in zip(first, STREAMED, strict=True)]
    after = [Asked(prompt, tokens[:LATE_TOKENS]) for prompt, tokens in late]
    targets, names = _targets(side, blow), set(await side.answers())
    async with httpx.AsyncClient(base_url=side.url, timeout=None, trust_env=False) as client:
        begun = asyncio.Event()
        streams = [one for one in in_flight if one.stream]

        def changed() -> None:
            if all(len(one.tokens) >= SAID for one in streams):
                begun.set()

        async with asyncio.TaskGroup() as group:
            for one in in_flight:
                group.create_task(ask(client, one, changed=changed))
            await asyncio.wait_for(begun.wait(), MOMENT_TIMEOUT_S)
            _signal(targets, signal.SIGKILL if blow.how is How.KILL else signal.SIGSTOP)
            for one in after:
                group.create_task(ask(client, one))
            back = group.create_task(_back(side, client, blow, names, probes))
            if blow.how is How.STOP:
                await asyncio.sleep(STOPPED_S)  # the length of the fault
                _signal(targets, signal.SIGCONT)
    return Result(side_name, blow, in_flight, after, back.result())


def _targets(side: Side, blow: Blow) -> list[psutil.Process]:
    """The processes to strike."""
    pid = side.pid(blow.worker)
    if blow.scheduler_only:
        return [scheduler(pid)]
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _signal(targets: Sequence[psutil.Process], number: signal.Signals) -> None:
    for one in targets:
        if one.is_running():
            os.kill(one.pid, number)


async def _back(side: Side, client: httpx.AsyncClient, blow: Blow, names: Collection[str], known: Known) -> Back:
    """When some requests, sent at once, are all answered right, by all workers. To be called at the fault."""
    struck = time.monotonic()
    up_s = 0.0
    while (now_s := time.monotonic() - struck) < up_s + BACK_LIMIT_S:
        before = await side.answers()
        if blow.worker not in before and now_s < START_LIMIT_S:
            up_s = now_s
        probes = [Asked(prompt, tokens[:PROBE_TOKENS]) for prompt, tokens in known]
        await asyncio.gather(*(ask(client, one, PROBE_LIMIT_S) for one in probes))
        now = await side.answers()
        took_part = all(now.get(name, 0) > before.get(name, now.get(name, 0)) for name in names)
        if took_part and all(one.outcome is Outcome.ANSWERED for one in probes):
            return Back(up_s, time.monotonic() - struck)
        await asyncio.sleep(PROBE_EVERY_S)
    return Back(up_s, None)
