"""One cell, from an idle system over the fault to an idle system."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc
import httpx
import psutil

from tandem.core.cluster import ClusterView
from tandem.core.ids import Incarnation, WorkerId
from tandem.v1.bootstrap_pb2 import WorkerInfo
from tandem.v1.session_pb2 import WorkerStatus
from tests.support.faults.cells import Cell, Fault, Victim
from tests.support.faults.findings import Finding, outcomes_of, reasons_of
from tests.support.faults.load import Draw, Outcome, Request, ask
from tests.support.faults.moments import Arrangement
from tests.support.faults.strikes import PREPARED, STOPPED_S, Strike
from tests.support.system.asking import metric
from tests.support.system.system import System, watch_status

MOMENT_TIMEOUT_S: Final = 10.0
TRIES: Final = 5
"""Of new requests, until the fault strikes some at their moment."""
HUNG_S: Final = 15.0
"""After the bound: a request that has not ended by then hangs."""
COME_BACK_S: Final = 0.2
"""Between two tries to be served by every worker."""
WORKERS: Final = 4
RESUMED: Final = "tandem_gateway_resumed_total"
LATE: Final = 2
"""Requests that are sent when the fault has just struck."""
STREAMED: Final = (True, True, False, False)
"""Of the requests in flight: workers take turns, so each has one that streams and one that does not."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where cells of the same provider and moment are tried."""

    system: System
    """Two prefill and two decode workers in which the moment lasts."""
    arrangement: Arrangement
    draw: Draw
    bound_s: float
    """What the last outcome may take."""
    silence_bound_s: float
    """How long a stream may say nothing."""
    whole_timeout_s: float
    """What every worker may take to serve again."""


class Experiment:
    """One cell on a system that is idle."""

    def __init__(self, cell: Cell, stage: Stage) -> None:
        self._cell = cell
        self._stage = stage
        self._system = stage.system
        self._statuses: dict[str, WorkerStatus] = {}
        self._changed = asyncio.Event()
        self._struck = 0.0
        """Monotonic seconds."""

    async def run(self) -> Finding:
        """Strikes, and looks. Raises AssertionError if the moment does not come, or the system not back."""
        cell, system = self._cell, self._system
        members = await system.members()
        lives = {name: Incarnation(one.info.worker.incarnation) for name, one in members.items()}
        process = psutil.Process(system.pid(cell.victim.value))
        pids = [process.pid, *(child.pid for child in process.children(recursive=True))]
        async with system.client() as client:
            before = await _repeated(client), await metric(client, RESUMED)
            with PREPARED[cell.fault](system, pids) as strike:
                requests = await self._strike(strike, client, [one.info for one in members.values()])
            if cell.fault.ends_process:
                await asyncio.to_thread(process.wait, self._stage.whole_timeout_s)
            await self._wait_registered(lives)
            await self._wait_served(client)
            whole_s = time.monotonic() - self._struck
            repeated, went_on = await _repeated(client) - before[0], await metric(client, RESUMED) - before[1]
        leaked, stuck = await self._left_over()
        return Finding(
            cell=cell,
            outcomes=outcomes_of(requests),
            reasons=reasons_of(requests),
            repeated=max(0, int(repeated)),
            went_on=max(0, int(went_on)),
            seconds=max(one.ended for one in requests) - self._since,
            bound_s=self._stage.bound_s,
            silence_s=max(
                (one.silence_s(self._since) for one in requests if one.outcome is Outcome.ANSWERED), default=0.0
            ),
            silence_bound_s=self._stage.silence_bound_s,
            leaked=leaked,
            stuck=stuck,
            whole_s=whole_s,
        )

    async def _strike(self, strike: Strike, client: httpx.AsyncClient, workers: Sequence[WorkerInfo]) -> list[Request]:
        """Strikes when requests are at the moment; returns them and those sent right after it, when all have ended."""
        late = [self._draw(stream=False) for _ in range(LATE)]
        for _ in range(TRIES):
            requests = [self._draw(stream=stream) for stream in STREAMED]
            async with self._following(workers), asyncio.TaskGroup() as group:
                asked = [group.create_task(ask(client, one, self._changed.set)) for one in requests]
                if not await self._moment_comes(requests):
                    continue
                self._struck = time.monotonic()
                striking = group.create_task(strike())
                asked += [group.create_task(ask(client, one)) for one in late]
                await self._outcomes(asked)
                await striking
                return [*requests, *late]
        raise AssertionError(f"{self._cell}: the moment was missed {TRIES} times")

    def _draw(self, *, stream: bool) -> Request:
        return self._stage.draw(self._stage.arrangement.new_tokens, stream)

    @asynccontextmanager
    async def _following(self, workers: Sequence[WorkerInfo]) -> AsyncIterator[None]:
        """Keeps the last status of each worker while inside."""

        async def follow(info: WorkerInfo) -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for status in watch_status(info):
                    self._statuses[info.worker.worker_id] = status
                    self._changed.set()

        self._statuses.clear()
        tasks = [asyncio.create_task(follow(info)) for info in workers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _moment_comes(self, requests: Sequence[Request]) -> bool:
        """Waits for the moment. False if a request has ended before: on a busy machine it may pass unseen."""
        async with asyncio.timeout(MOMENT_TIMEOUT_S):
            while len(self._statuses) < WORKERS or not self._stage.arrangement.has_come(self._statuses, requests):
                if any(one.ended for one in requests):
                    return False
                self._changed.clear()
                await self._changed.wait()
        return not any(one.ended for one in requests)

    async def _outcomes(self, asked: Sequence[asyncio.Task[None]]) -> None:
        """Waits for every request; one that does not end is given up, and stays HUNG."""
        _, hanging = await asyncio.wait(asked, timeout=STOPPED_S + self._stage.bound_s + HUNG_S)
        for task in hanging:
            task.cancel()

    @property
    def _since(self) -> float:
        """The moment from which outcomes are due, in monotonic seconds: a gateway that is stopped can say nothing."""
        stopped = self._cell.victim is Victim.GATEWAY and self._cell.fault is Fault.STOP
        return self._struck + (STOPPED_S if stopped else 0.0)

    # ------------------------------------------------------------ afterwards

    async def _wait_registered(self, lives: Mapping[str, Incarnation]) -> None:
        """Waits until every worker is in the view, the victim as a new life if its process was ended."""
        replaced = self._cell.victim.value if self._cell.fault.ends_process else ""

        def is_back(view: ClusterView, name: str, life: Incarnation) -> bool:
            info = view.workers.get(WorkerId(name))
            return info is not None and not info.draining and info.life.incarnation >= life + (name == replaced)

        await self._system.wait_view(
            lambda view: all(is_back(view, name, life) for name, life in lives.items()),
            self._stage.whole_timeout_s,
        )

    async def _wait_served(self, client: httpx.AsyncClient) -> None:
        """Asks, as a client does that is told to come back, until each worker has answered something right."""
        before = await self._submitted()
        async with asyncio.timeout(self._stage.whole_timeout_s):
            while True:
                probes = [self._draw(stream=False) for _ in range(WORKERS)]
                await asyncio.gather(*(ask(client, probe) for probe in probes))
                assert not any(probe.outcome is Outcome.WRONG for probe in probes), f"{self._cell}: wrong afterwards"
                now = await self._submitted()
                refused = any(probe.outcome is not Outcome.ANSWERED for probe in probes)
                if not refused and all(now.get(name, 0) > count for name, count in before.items()):
                    return
                await asyncio.sleep(COME_BACK_S)

    async def _submitted(self) -> dict[str, int]:
        return {name: status.submitted for name, status in (await self._system.statuses()).items()}

    async def _left_over(self) -> tuple[int, int]:
        """Entries of pools that nobody can have, and rooms that have not ended, once there is nothing to do."""
        try:
            statuses = await self._system.wait_idle()
        except (AssertionError, TimeoutError):
            statuses = await self._system.statuses()
        pools = [pool for status in statuses.values() for pool in status.pools]
        leaked = sum(pool.total - pool.free - pool.evictable for pool in pools)
        return leaked, sum(status.open_rooms for status in statuses.values())


async def _repeated(client: httpx.AsyncClient) -> int:
    """How many attempts the gateway has repeated since it started."""
    text = (await client.get("/metrics")).text
    return int(sum(map(float, re.findall(r"^tandem_gateway_retries_total\{.*\} (\S+)$", text, re.MULTILINE))))
