"""Pages of one life of a worker: who holds each, what is in it, and which are kept for prompts that begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.core.ids import RoomId


class Kv(NamedTuple):
    """What a page holds: the KV of one page of one prompt."""

    request: int
    place: int


GARBAGE = Kv(-1, -1)
"""Bytes that were damaged on the way."""
Prompt = tuple[Kv, ...]
"""A prompt, or its beginning, page by page."""


@dataclass(slots=True)
class _Page:
    holder: RoomId | None = None
    content: Kv | None = None


class Pool:
    """Pages, given out last in first out, so that a page is reused as soon as it can be.

    Kept pages are nobody's, and any number of rooms may read them; those that none reads give way.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._pages = [_Page() for _ in range(total)]
        self._free = list(range(total))
        self._held: dict[RoomId, tuple[int, ...]] = {}
        self._kept: dict[Prompt, int] = {}
        """By all that leads to the end of the page; the least recently used first."""
        self._reads: dict[RoomId, tuple[Prompt, ...]] = {}

    @property
    def total(self) -> int:
        """Pages of the pool."""
        return len(self._pages)

    @property
    def balanced(self) -> bool:
        """Whether every page is free or kept, and none is held or read."""
        return len(self._free) + len(self._kept) == len(self._pages) and not self._held and not self._reads

    def reserve(self, room: RoomId, count: int) -> tuple[int, ...] | None:
        """`count` pages for a room, or None if there are not as many."""
        idle = self.idle()
        if count > len(self._free) + len(idle):
            return None
        for prompt in idle[: max(0, count - len(self._free))]:
            self._free.append(self._kept.pop(prompt))
        pages = tuple(self._free.pop() for _ in range(count))
        for page in pages:
            self._pages[page].holder = room
        self._held[room] = pages
        return pages

    def idle(self) -> list[Prompt]:
        """Of the kept pages, those that may give way."""
        read = {prompt for prompts in self._reads.values() for prompt in prompts}
        return [prompt for prompt in self._kept if prompt not in read]

    def hold(self, room: RoomId, prompt: Prompt) -> tuple[int, ...]:
        """The kept pages of a prompt's beginning; the room reads them until it is released."""
        beginnings = (prompt[:end] for end in range(1, len(prompt) + 1))
        found = tuple(takewhile(self._kept.__contains__, beginnings))
        if found:
            self._reads[room] = found
        for beginning in reversed(found):
            self._kept[beginning] = self._kept.pop(beginning)  # used last
        return tuple(self._kept[beginning] for beginning in found)

    def keep(self, room: RoomId, prompt: Prompt, pages: tuple[int, ...]) -> None:
        """Keeps a room's pages, which have this prompt, instead of giving them back; what is kept already is not."""
        new = {prompt[: index + 1]: page for index, page in enumerate(pages) if prompt[: index + 1] not in self._kept}
        self._kept |= new
        for page in new.values():
            self._pages[page].holder = None
        self._held[room] = tuple(page for page in self._held[room] if page not in new.values())

    def release(self, room: RoomId) -> None:
        """Gives a room's pages back; what is in them stays there, as in real memory."""
        self._reads.pop(room, None)
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
        """What is in a page that this room holds, or reads as a kept one."""
        kept = (self._kept.get(beginning) for beginning in self._reads.get(room, ()))
        if self._pages[page].holder != room and page not in kept:
            text = f"page {page} of {self._name} is read for a room that does not hold it"
            raise ViolationError(Invariant.ONE_WRITER, text)
        return self._pages[page].content

    def write(self, page: int, content: Kv) -> None:
        """Changes a page, whoever holds it: memory does not ask."""
        self._pages[page].content = content
