"""One life of a worker process: its memory, and whether it runs, is stopped, or is gone."""

from __future__ import annotations

from collections.abc import Callable

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.memory import Pool
from tandem.core.ids import Incarnation, WorkerId


class Life:
    """What a crash takes away all at once."""

    def __init__(self, agenda: Agenda, worker_id: WorkerId, instance: int, pages: int, rows: int) -> None:
        self._agenda = agenda
        self.worker_id = worker_id
        self.instance = instance.to_bytes(16, "big")
        """Name of the process, as it registers with it."""
        self.incarnation = Incarnation(0)
        self.pool = Pool(f"{worker_id}'s pages", pages)
        self.rows = Pool(f"{worker_id}'s metadata rows", rows)
        self.alive = True
        self._goes_on_at = 0.0

    def __str__(self) -> str:
        return f"{self.worker_id}@{self.incarnation}"

    @property
    def stopped(self) -> bool:
        """Whether it is stopped (SIGSTOP) now."""
        return self._goes_on_at > self._agenda.now

    @property
    def runs_since(self) -> float:
        """When it last went on, or will; 0 if it was never stopped."""
        return self._goes_on_at

    def stop(self, for_s: float) -> None:
        """Stops it for a while."""
        self._goes_on_at = max(self._goes_on_at, self._agenda.now + for_s)

    def when_it_goes_on(self, action: Callable[[], None]) -> None:
        """Now, or as soon as it runs again; never, if it is gone by then."""
        if not self.alive:
            return
        if not self.stopped:
            action()
            return
        wait_s = self._goes_on_at - self._agenda.now
        self._agenda.after(wait_s, f"{self.worker_id} goes on", lambda: self.when_it_goes_on(action))
