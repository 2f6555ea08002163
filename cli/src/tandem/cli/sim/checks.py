"""What must hold, and what is raised when it does not."""

from __future__ import annotations

from enum import Enum


class Invariant(Enum):
    """The invariants of ARCHITECTURE.md."""

    ONE_WRITER = "I1"
    """A page is neither written nor read for a room that does not hold it."""
    QUIET_ABORT = "I2"
    """No byte lands for a room that has ended."""
    INSIDE_GRANT = "I3"
    """Nothing outside a granted range changes."""
    ONE_END = "I4"
    """A living side ends once, in time; prefill succeeds only if decode did."""
    TRUE_TOKENS = "I5"
    """What is answered was made from the KV of this prompt, all of it."""
    POOLS_BALANCE = "I6"
    """When all is over, every page is free or kept for later prompts, and every metadata row is free."""
    NO_SURPRISE = "the model"
    """Nothing else is raised, such as by a machine that makes a move which its table does not have."""


class ViolationError(Exception):
    """An invariant is broken."""

    def __init__(self, invariant: Invariant, text: str) -> None:
        super().__init__(f"{invariant.value} is broken: {text}")
        self.invariant = invariant
