"""What a planner says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from tandem.core.ids import Role


class Change(Enum):
    """What is to be done."""

    KEEP = "keep"
    MOVE = "move"
    """One worker goes from a role to another."""
    ADD = "add"
    """One worker more."""
    REMOVE = "remove"
    """One worker less."""


class Bound(Enum):
    """What keeps a change back."""

    HOLD = "hold"
    """What would lead to it has not lasted long enough."""
    EASE = "ease"
    """A role is hot and keeps up: that has not lasted long enough, or nobody has a worker to spare."""
    NOBODY = "nobody"
    """Nobody could give a worker without lacking it."""
    LEAST = "least"
    """All others have as few workers as they may have."""
    MOST = "most"
    """Nobody could give a worker, and there are as many as there may be."""
    CHANGE = "change"
    """The one before is being made."""
    REST = "rest"
    """The one before has just been made, or has failed."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One answer."""

    change: Change
    reason: str
    """One sentence for a person."""
    gives: Role | None = None
    """Loses a worker: of MOVE and REMOVE."""
    gets: Role | None = None
    """Gains one: of MOVE and ADD."""
    pressures: Mapping[Role, float] | None = None
    """What led to it: demand per worker of each role."""
    held_by: Bound | None = None
    """Of KEEP: what keeps a change back; None: none is wanted."""

    @property
    def steps(self) -> tuple[tuple[Role, int], ...]:
        """Workers more or less, by role."""
        taken, given = ((self.gives, -1),) if self.gives else (), ((self.gets, 1),) if self.gets else ()
        return (*taken, *given)


KEEP_QUIET = Advice(Change.KEEP, "every role is neither full nor nearly idle")
