"""What processes have used, as the kernel counts it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """A process and all below it that live now."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += [int(child) for child in path.read_text().split()]
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of processes so far, theirs and the kernel's for them. Threads that have ended do not count."""
    return sum(_ran_ns(pid) for pid in pids) / 1e9


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that processes hold now; what two of them share counts twice."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in pids)


def _ran_ns(pid: int) -> int:
    ran = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            ran += int(path.read_text().split()[0])
    return ran
