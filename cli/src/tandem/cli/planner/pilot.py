"""Looks at what gateways say, says what the planner advises, and makes the change where a command is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from tandem.cli.planner.hook import variables
from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.cli.planner.settings import PlannerSettings
from tandem.cli.planner.sights import Sight
from tandem.core.errors import TandemError
from tandem.core.ids import Role, WorkerId
from tandem.core.planner.advice import Advice, Change
from tandem.core.planner.demand import Costs, Demands
from tandem.core.planner.loads import leaver
from tandem.core.planner.steering import Planner
from tandem.rpc.tasks import TaskSupervisor

log = logging.getLogger(__name__)

Drain = Callable[[WorkerId, bool], Awaitable[None]]
"""Marks a worker as draining, or takes that back. Raises TandemError."""
Hook = Callable[[Mapping[str, str]], Awaitable[None]]
"""Makes a change, of which it is told by variables. Raises TandemError."""


class Pilot:
    """One per process, on one loop."""

    def __init__(
        self,
        settings: PlannerSettings,
        metrics: PlannerMetrics,
        tasks: TaskSupervisor,
        drain: Drain,
        hook: Hook | None,
        costs: Costs | None = None,
    ) -> None:
        """hook: None = changes are only recommended. costs: None = what a request takes is measured."""
        self._set = settings
        self._metrics = metrics
        self._tasks = tasks
        self._drain = drain
        self._hook = hook
        self._costs = costs
        self._demands = self._no_demands()
        self._planner = Planner(settings.rules)
        self._making = False
        """A change is under way."""
        self._latest = Sight()
        self._news = asyncio.Condition()

    async def take(self, sight: Sight, now: float) -> None:
        """The cluster as all gateways have it. now: monotonic seconds."""
        async with self._news:
            self._latest = sight
            self._news.notify_all()
        seen = self._demands.look(now, sight.workers, sight.traffic)
        advice = self._planner.look(seen, making=self._making)
        self._metrics.saw(seen, self._planner, advice)
        log.debug("%s", advice.reason)
        if advice.change is Change.KEEP:
            return
        self._metrics.advised(advice)
        wanted = dict(self._planner.wanted)
        figures = ", ".join(f"{role.value} {value:.2f}" for role, value in (advice.pressures or {}).items())
        workers = ", ".join(f"{count} {role.value}" for role, count in wanted.items())
        log.info("%s, to have %s: %s; pressures: %s", _said(advice), workers, advice.reason, figures)
        if self._hook is not None:
            leaves = leaver(sight.workers, advice.gives) if advice.gives else None
            self._making = True
            self._tasks.spawn(self._make(self._hook, advice, wanted, leaves), "change")

    def blind(self) -> None:
        """A gateway is not heard, so what is asked is not known. Nothing is seen, and so nothing decided, until all are
        heard; and what was seen does not count as having lasted meanwhile. A change that is under way goes on."""
        self._demands = self._no_demands()
        self._planner.interrupted()

    def _no_demands(self) -> Demands:
        return Demands(self._set.outlook, self._set.comfort, self._costs)

    async def _make(self, hook: Hook, advice: Advice, wanted: Mapping[Role, int], leaves: WorkerId | None) -> None:
        try:
            if leaves is not None:
                await self._drain(leaves, True)
                await self._until_idle(leaves)
            await hook(variables(advice, wanted, leaves))
        except TandemError as error:
            log.warning("the change failed, and is not tried again at once: %s", error.message)
            self._metrics.applied(well=False)
            if leaves is not None:
                await self._give_back(leaves)
            self._planner.failed()
        else:
            self._metrics.applied(well=True)
        finally:
            self._making = False

    async def _until_idle(self, worker_id: WorkerId) -> None:
        """Until a worker that drains has nothing left, or its time is over."""
        try:
            async with asyncio.timeout(self._set.drain_timeout_s), self._news:
                # What was seen before the drain may be over: a room may still have come.
                await self._news.wait()
                await self._news.wait_for(lambda: worker_id not in self._latest.busy)
        except TimeoutError:
            log.warning("%s still has rooms after %g s", worker_id, self._set.drain_timeout_s)

    async def _give_back(self, worker_id: WorkerId) -> None:
        try:
            await self._drain(worker_id, False)
        except TandemError as error:
            log.warning("%s stays drained: %s", worker_id, error.message)


def _said(advice: Advice) -> str:
    roles = " to ".join(role.value for role in (advice.gives, advice.gets) if role is not None)
    return f"{advice.change.value} a worker: {roles}"
