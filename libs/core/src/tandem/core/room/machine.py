"""What both room machines share: one state, moved by one table, seen by the engine as a phase."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from tandem.core.ids import GrantId
from tandem.core.room.events import Effect, Input, Phase, Refused, Why

State = TypeVar("State", bound=Enum)


class RoomMachine(ABC, Generic[State]):
    """`step` takes one input and returns what the shell must do, in order.

    A subclass brings its tables, and a handler per input that returns the next state and the effects.
    """

    __slots__ = ("_deadline", "_grant", "_state", "_why")

    transitions: ClassVar[Mapping[tuple[Any, type], frozenset[Any]]]
    """Legal moves. A (state, input) pair that is not here is refused: it changes nothing and is counted."""
    phases: ClassVar[Mapping[Any, Phase]]
    """What the engine sees of each state."""
    decided: ClassVar[frozenset[Any]]
    """States that no deadline changes any more: the terminal ones, and those that only wait for quiet."""
    handlers: ClassVar[Mapping[type, Callable[..., tuple[Any, list[Effect]]]]]
    """What each input does."""

    def __init__(self, start: State, deadline: float) -> None:
        """deadline: monotonic seconds by which the room must have ended well."""
        self._state = start
        self._deadline = deadline
        self._grant: GrantId | None = None
        self._why: Why | None = None

    @property
    def state(self) -> State:
        """Where the room stands."""
        return self._state

    @property
    def phase(self) -> Phase:
        """What the engine sees."""
        return self.phases[self._state]

    @property
    def grant_id(self) -> GrantId | None:
        """The room's grant, once there is one."""
        return self._grant

    @property
    def why(self) -> Why | None:
        """First reason of the failure, if it fails or failed."""
        return self._why

    def next_deadline(self) -> float | None:
        """When the machine wants a Tick; None if never again."""
        return None if self._state in self.decided else self._deadline

    def step(self, event: Input, now: float) -> list[Effect]:
        """Takes one input at `now` (monotonic seconds)."""
        allowed = self.transitions.get((self._state, type(event)))
        if allowed is None:
            return [Refused(f"{type(event).__name__} in {self._state.value}")]
        target, effects = self.handlers[type(event)](self, event, now)
        if target not in allowed:
            raise AssertionError(f"{self._state} -> {target} on {type(event).__name__} is not in the table")
        self._state = target
        return effects
