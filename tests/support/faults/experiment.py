"""One cell, from an idle system over the fault to an idle system."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import grpc
import httpx
import psutil

from tandem.core.cluster import ClusterView
from tandem.core.ids import Incarnation, WorkerId
from tandem.v1.bootstrap_pb2 import WorkerInfo
from tandem.v1.session_pb2 import WorkerStatus
from tests.support.faults.cells import Cell, Fault, Moment, Victim
from tests.support.faults.findings import Finding, outcomes_of, reasons_of, went_on
from tests.support.faults.load import Outcome, Request, ask, draw
from tests.support.faults.moments import ARRANGEMENTS
from tests.support.faults.strikes import PREPARED, STOPPED_S, Strike
from tests.support.mock.oracle import Oracle
from tests.support.system.system import System, running_system, watch_status

BOUND_S: Final = 3.0
"""From the fault to the last outcome."""
MOMENT_TIMEOUT_S: Final = 10.0
TRIES: Final = 5
"""Of new requests, until the fault strikes some at their moment."""
HUNG_S: Final = 15.0
"""After the bound: a request that has not ended by then hangs."""
WHOLE_TIMEOUT_S: Final = 40.0
COME_BACK_S: Final = 0.2
"""Between two tries to be served by every worker."""
WORKERS: Final = 4
LATE: Final = 2
"""Requests that are sent when the fault has just struck."""
STREAMED: Final = (True, True, False, False)
"""Of the requests in flight: workers take turns, so each has one that streams and one that does not."""


@contextmanager
def faulty_system(folder: Path, provider: str, moment: Moment, *options: str) -> Iterator[System]:
    """Two prefill and two decode workers in which a moment lasts; for every cell of that provider and moment."""
    shape = ("--engine", "mock", "--ratio", "2:2", "--provider", provider)
    with running_system(folder, *shape, *ARRANGEMENTS[moment].options, *options) as system:
        yield system


class Experiment:
    """One cell on a system that is idle."""

    def __init__(self, cell: Cell, system: System, oracle: Oracle, bound_s: float = BOUND_S) -> None:
        """bound_s: what the last outcome may take."""
        self._cell = cell
        self._system = system
        self._oracle = oracle
        self._bound_s = bound_s
        self._arrangement = ARRANGEMENTS[cell.moment]
        self._dice = random.Random(str(cell))
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
        async with system.client() as client:
            before = await repeated_attempts(client)
            with PREPARED[cell.fault](system, process.pid) as strike:
                requests = await self._strike(strike, client, [one.info for one in members.values()])
            if cell.fault.ends_process:
                await asyncio.to_thread(process.wait, WHOLE_TIMEOUT_S)
            await self._wait_registered(lives)
            await self._wait_served(client)
            whole_s = time.monotonic() - self._struck
            repeated = max(0, await repeated_attempts(client) - before)
        leaked, stuck = await self._left_over()
        return Finding(
            cell=cell,
            outcomes=outcomes_of(requests),
            reasons=reasons_of(requests),
            repeated=repeated,
            went_on=went_on(requests),
            seconds=self._seconds(requests),
            bound_s=self._bound_s,
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
        return draw(self._dice, self._oracle, self._arrangement.new_tokens, stream=stream)

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
            while len(self._statuses) < WORKERS or not self._arrangement.has_come(self._statuses, requests):
                if any(one.ended for one in requests):
                    return False
                self._changed.clear()
                await self._changed.wait()
        return not any(one.ended for one in requests)

    async def _outcomes(self, asked: Sequence[asyncio.Task[None]]) -> None:
        """Waits for every request; one that does not end is given up, and stays HUNG."""
        _, hanging = await asyncio.wait(asked, timeout=STOPPED_S + self._bound_s + HUNG_S)
        for task in hanging:
            task.cancel()

    def _seconds(self, requests: Sequence[Request]) -> float:
        stopped = self._cell.victim is Victim.GATEWAY and self._cell.fault is Fault.STOP
        return max(one.ended for one in requests) - self._struck - (STOPPED_S if stopped else 0.0)

    # ------------------------------------------------------------ afterwards

    async def _wait_registered(self, lives: Mapping[str, Incarnation]) -> None:
        """Waits until every worker is in the view, the victim as a new life if its process was ended."""
        replaced = self._cell.victim.value if self._cell.fault.ends_process else ""

        def is_back(view: ClusterView, name: str, life: Incarnation) -> bool:
            info = view.workers.get(WorkerId(name))
            return info is not None and not info.draining and info.life.incarnation >= life + (name == replaced)

        await self._system.wait_view(
            lambda view: all(is_back(view, name, life) for name, life in lives.items()), WHOLE_TIMEOUT_S
        )

    async def _wait_served(self, client: httpx.AsyncClient) -> None:
        """Asks, as a client does that is told to come back, until each worker has answered something right."""
        before = await self._submitted()
        async with asyncio.timeout(WHOLE_TIMEOUT_S):
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


async def repeated_attempts(client: httpx.AsyncClient) -> int:
    """How many attempts the gateway has repeated since it started."""
    text = (await client.get("/metrics")).text
    return int(sum(map(float, re.findall(r"^tandem_gateway_retries_total\{.*\} (\S+)$", text, re.MULTILINE))))
