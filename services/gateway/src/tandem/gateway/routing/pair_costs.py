"""How what pairs cost is measured in a gateway: by its own rooms, and by what workers tell of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Role, WorkerId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.pair_book import PairBook
from tandem.core.pair_cost import Prompt
from tandem.v1 import session_pb2

KV: Final = "kv"


class ArrivingRoom(Protocol):
    """The part of an attempt that is looked at; see tandem.gateway.routing.room_end.RoomEnd."""

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """Adds what is called once prefill has done its part."""


def saw_status(book: PairBook, info: WorkerInfo, status: session_pb2.WorkerStatus) -> None:
    """A worker has told of itself."""
    free = (pool.free + pool.evictable for pool in status.pools if pool.name == KV)
    book.saw_free(info.life, next(free, np.inf))
    for part in status.traffic if info.role is Role.PREFILL else ():
        book.saw_moved(info.life, WorkerId(part.peer), part.provider, part.bytes, part.moving_us)


@contextmanager
def running(
    book: PairBook, room: ArrivingRoom, prompt: Prompt, lives: tuple[WorkerLife, WorkerLife], held: tuple[int, int]
) -> Iterator[None]:
    """A room runs inside of this. lives, held: of prefill and of decode; tokens of the prompt."""
    underway = book.begin(prompt, lives, held)
    room.on_kv_arrived(underway.arrived)
    try:
        yield
    finally:
        underway.done()


def prompt_of(tokens: int, layout: KvLayout) -> Prompt:
    """A prompt on workers of this layout."""
    page_bytes = next((pool.entry_bytes for pool in layout.pools if pool.name == KV), 0)
    return Prompt(tokens, layout.page_size, page_bytes / layout.page_size)
