"""Exit codes that every Tandem process shares."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a process ended."""

    OK = 0
    FAILED = 1
    """A failure that has no code of its own; the log says which."""
    BAD_SETTINGS = 2
    REFUSED = 3
    """Bootstrap refused the worker: another protocol major, or a KV layout that does not fit."""
    REPLACED = 4
    """A newer life of the worker is registered."""
    ENGINE_LOST = 5
    """The engine, or one of its ranks, is dead."""
    FORCED = 130
    """A second signal cut the graceful stop short."""
