"""Pages of one life of a worker: who holds each, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.core.ids import RoomId


@dataclass(frozen=True, slots=True)
class Kv:
    """What a page holds: the KV of one page of one prompt."""

    request: int
    index: int


GARBAGE = Kv(-1, -1)
"""Bytes that were damaged on the way."""


@dataclass(slots=True)
class _Page:
    holder: RoomId | None = None
    content: Kv | None = None


class Pool:
    """Pages, given out last in first out, so that a page is reused as soon as it can be."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._pages = [_Page() for _ in range(total)]
        self._free = list(range(total))
        self._held: dict[RoomId, tuple[int, ...]] = {}

    @property
    def total(self) -> int:
        """Pages of the pool."""
        return len(self._pages)

    @property
    def balanced(self) -> bool:
        """Whether every page is free."""
        return len(self._free) == len(self._pages) and not self._held

    def reserve(self, room: RoomId, count: int) -> tuple[int, ...] | None:
        """`count` pages for a room, or None if there are not as many."""
        if count > len(self._free):
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        for page in pages:
            self._pages[page].holder = room
        self._held[room] = pages
        return pages

    def release(self, room: RoomId) -> None:
        """Gives a room's pages back; what is in them stays there, as in real memory."""
        for page in self._held.pop(room, ()):
            self._pages[page].holder = None
            self._free.append(page)

    def holder(self, page: int) -> RoomId | None:
        """Room that holds a page."""
        return self._pages[page].holder

    def peek(self, page: int) -> Kv | None:
        """What is in a page, whoever asks."""
        return self._pages[page].content

    def read(self, room: RoomId, page: int) -> Kv | None:
        """What is in a page that this room holds."""
        if self._pages[page].holder != room:
            text = f"page {page} of {self._name} is read for a room that does not hold it"
            raise ViolationError(Invariant.ONE_WRITER, text)
        return self._pages[page].content

    def write(self, page: int, content: Kv) -> None:
        """Changes a page, whoever holds it: memory does not ask."""
        self._pages[page].content = content
