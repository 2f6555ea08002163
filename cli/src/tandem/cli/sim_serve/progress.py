"""Long runs: how far they are, and an early end that still tells what there is."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Final

from tandem.cli.sim_serve.jobs import Ask

EVERY: Final = 100_000
"""Requests between two lines."""
KIB: Final = 1 << 10


class Teller:
    """Hands requests on. The first SIGINT ends them, so that those which were asked are answered and reported; a second
    one ends the process."""

    def __init__(self, wanted: int, *, aloud: bool) -> None:
        """wanted: requests in all. aloud: a line on stderr every now and then."""
        self._wanted, self._aloud = wanted, aloud
        self._began_s, self._told, self._enough = time.process_time(), 0, False

    def each(self, asks: Iterable[Ask]) -> Iterator[Ask]:
        """The same, until it is enough."""
        before = signal.signal(signal.SIGINT, self._stop)
        try:
            for ask in asks:
                if self._enough:
                    break
                yield ask
                self._told += 1
                if self._aloud and self._told % EVERY == 0:
                    print(self._line(ask.at_s), file=sys.stderr, flush=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._enough = True

    def _line(self, at_s: float) -> str:
        took_s = max(time.process_time() - self._began_s, 1e-9)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB
        return (
            f"{self._told:,} of {self._wanted:,} requests asked, {at_s:,.1f} s of virtual time, "
            f"{took_s:,.0f} s of CPU, {self._told / took_s * 60:,.0f} per minute, at most {memory:,.0f} MiB"
        )
