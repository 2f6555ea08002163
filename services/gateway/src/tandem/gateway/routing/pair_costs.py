"""What pairs of workers cost, as measured: prefill's pace by this gateway's rooms, the rest by what workers tell."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Role, WorkerId, WorkerLife
from tandem.core.kv_index import KvMatch
from tandem.core.layout import KvLayout
from tandem.core.pair_cost import (
    DEFAULT_BYTES_PER_S,
    DEFAULT_TOKENS_PER_S,
    DecodeSide,
    Fits,
    Pace,
    PrefillSide,
    Prompt,
    cheapest_pair,
)
from tandem.v1 import session_pb2

MAX_LIVES: Final = 4096
"""Lives of which something is remembered; the one that was looked at the longest ago is forgotten."""
MAX_LINKS: Final = 512
"""Links of one life; as many as a worker tells of."""
MEASURED_TOKENS: Final = 256
"""A prompt with fewer to compute tells of what any prompt takes, not of how fast tokens are computed."""
KV: Final = "kv"


class ArrivingRoom(Protocol):
    """The part of an attempt that is looked at; see tandem.gateway.routing.attempt.Attempt."""

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """Adds what is called once prefill has done its part."""


@dataclass(slots=True)
class _Link:
    """From a prefill worker to one peer."""

    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes and microseconds that were told of last, by provider."""
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class _Known:
    """One life of one worker."""

    queued_tokens: int = 0
    done_at: float = 0.0
    """When its last prompt was done, by the clock."""
    pace: Pace = field(default_factory=Pace)
    """Tokens per second that it computes."""
    links: dict[WorkerId, _Link] = field(default_factory=dict)
    free_pages: int | None = None


class PairCosts:
    """What is known of each worker. Everything runs on one loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._known: OrderedDict[WorkerLife, _Known] = OrderedDict()

    def saw_status(self, info: WorkerInfo, status: session_pb2.WorkerStatus) -> None:
        """A worker has told of itself."""
        known = self._of(info.life)
        known.free_pages = next((pool.free + pool.evictable for pool in status.pools if pool.name == KV), None)
        for part in status.traffic if info.role is Role.PREFILL else ():
            peer = WorkerId(part.peer)
            if peer in known.links or len(known.links) < MAX_LINKS:
                _moved(known.links.setdefault(peer, _Link()), part)

    @contextmanager
    def running(
        self, room: ArrivingRoom, prompt: Prompt, lives: tuple[WorkerLife, WorkerLife], held_tokens: tuple[int, int]
    ) -> Iterator[None]:
        """A room runs inside of this. lives, held_tokens: of prefill and of decode."""
        prefill, decode = lives
        tokens = max(1, prompt.tokens - held_tokens[0])
        moving_s = max(0, prompt.tokens - held_tokens[1]) * prompt.token_bytes / self.speed(prefill, decode)
        known, began, open_ = self._of(prefill), self._clock(), True
        known.queued_tokens += tokens

        def done() -> None:
            nonlocal open_
            if open_:
                open_ = False
                known.queued_tokens -= tokens

        def arrived() -> None:
            now = self._clock()
            # Prompts are computed one after the other: this one had the worker since the one before it was done.
            busy_s = now - max(began, known.done_at)
            known.done_at = now
            if tokens >= MEASURED_TOKENS:
                known.pace.saw(tokens, max(busy_s - moving_s, busy_s / 10))
            done()

        room.on_kv_arrived(arrived)
        try:
            yield
        finally:
            done()

    def cheapest(
        self,
        prompt: Prompt,
        prefills: Iterable[WorkerLife],
        loads: Mapping[WorkerLife, float],
        held: KvMatch,
        fits: Fits,
        bits: int,
    ) -> tuple[PrefillSide, DecodeSide] | None:
        """The pair that costs a prompt least; None if none fits. loads: rooms per place of each decode worker. bits: 32
        random ones."""
        usual = self._usual_pace()
        ours = [
            PrefillSide(life, known.queued_tokens, known.pace.per_s or usual, held.pages_of(life) * prompt.page_size)
            for life, known in ((life, self._of(life)) for life in prefills)
        ]
        theirs = [
            DecodeSide(life, load, self._of(life).free_pages, held.pages_of(life) * prompt.page_size)
            for life, load in loads.items()
        ]
        return cheapest_pair(prompt, ours, theirs, self.speed, fits, bits)

    def speed(self, prefill: WorkerLife, decode: WorkerLife) -> float:
        """Bytes per second of the link between one rank and its peer."""
        link = self._of(prefill).links.get(decode.worker_id)
        return (link.pace.per_s if link is not None else None) or DEFAULT_BYTES_PER_S

    def _usual_pace(self) -> float:
        """Of a worker that is new: that of the others."""
        paces = [pace for known in self._known.values() if (pace := known.pace.per_s) is not None]
        return sum(paces) / len(paces) if paces else DEFAULT_TOKENS_PER_S

    def _of(self, life: WorkerLife) -> _Known:
        known = self._known.get(life)
        if known is not None:
            self._known.move_to_end(life)
            return known
        known = self._known[life] = _Known()
        if len(self._known) > MAX_LIVES:
            self._known.popitem(last=False)
        return known


def prompt_of(tokens: int, layout: KvLayout) -> Prompt:
    """A prompt on workers of this layout."""
    page_bytes = next((pool.entry_bytes for pool in layout.pools if pool.name == KV), 0)
    return Prompt(tokens, layout.page_size, page_bytes / layout.page_size)


def _moved(link: _Link, part: session_pb2.PeerTraffic) -> None:
    size, us = link.told.get(part.provider, (0, 0))
    if part.bytes > size and part.moving_us > us:
        link.pace.saw(part.bytes - size, (part.moving_us - us) / 1e6)
    link.told[part.provider] = (part.bytes, part.moving_us)
