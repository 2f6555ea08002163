"""An engine that decodes, on the virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from tandem.cli.sim_serve.jobs import Job
from tandem.cli.sim_serve.running import RunningBatch
from tandem.cli.sim_serve.setting import Setting, Told


class Decoder:
    """An engine that decodes: stretches of steps between two changes of its batch."""

    def __init__(self, setting: Setting, ended: Told, other_work: Callable[[], bool] = lambda: False) -> None:
        """ended: hears of each sequence that is whole. other_work: asked at each change of the batch; True: the engine
        does something else now, and will say `go_on`."""
        self.busy_s = 0.0
        self.stall_s = 0.0
        """That the other work has taken from the sequences of the batch, since their last step."""
        self._set = setting
        self._tell_ended = ended
        self._other_work = other_work
        self._batch = RunningBatch(setting.costs, setting.gaps)
        self._ready: deque[Job] = deque()
        self._began_s = 0.0
        self._planned = 0
        """Steps of the stretch that runs; 0: none does."""
        self._plan = 0
        """Number of the plan that holds: an earlier one is void."""

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def full(self) -> bool:
        """Whether no further sequence finds a place."""
        return len(self._batch) + len(self._ready) >= self._set.shape.max_running

    def join(self, job: Job) -> None:
        """A sequence whose first token and KV are there."""
        if job.ask.new_tokens == 1:
            self._end(job)
            return
        self._ready.append(job)
        self.interrupt()

    def interrupt(self) -> None:
        """Somebody wants the engine: the stretch ends with the step that runs."""
        if not self._planned:
            self.go_on()
            return
        steps = self._batch.steps_begun(self._set.agenda.now - self._began_s, self._planned)
        if steps < self._planned:
            self._stretch(steps)

    def go_on(self) -> None:
        """Decides what the engine does next; it is idle now."""
        if self._other_work():
            return
        while self._ready and len(self._batch) < self._set.shape.max_running:
            self._batch.join(self._ready.popleft())
        if len(self._batch):
            self._began_s = self._set.agenda.now
            self._stretch(self._batch.steps_to_end())

    def _stretch(self, steps: int) -> None:
        self._planned = steps
        self._plan += 1
        self._set.agenda.at(self._began_s + self._batch.seconds(steps), partial(self._stepped, self._plan))

    def _stepped(self, plan: int) -> None:
        if plan != self._plan:
            return
        self.busy_s += self._set.agenda.now - self._began_s
        steps, self._planned = self._planned, 0
        ended = self._batch.advance(steps, self._began_s, self.stall_s)
        self.stall_s = 0.0
        for job in ended:
            self._end(job)
        if not self._planned:
            self.go_on()

    def _end(self, job: Job) -> None:
        job.ended_s = self._set.agenda.now
        self._tell_ended(job)
