"""What pairs of workers cost, as measured: prefill's pace by this gateway's rooms, the rest by what workers tell.

Pure: the clock is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.core.candidates import Candidates
from tandem.core.ids import Role, WorkerId, WorkerLife
from tandem.core.kv_index import KvMatch
from tandem.core.pair_cost import (
    DEFAULT_BYTES_PER_S,
    DEFAULT_TOKENS_PER_S,
    DecodeSide,
    Fits,
    Pace,
    PrefillSide,
    Prompt,
    cheap_decodes,
    cheap_prefills,
    cheapest_pair,
)

MAX_LIVES: Final = 4096
"""Lives of which something is remembered; the one that was looked at the longest ago is forgotten."""
MAX_LINKS: Final = 512
"""Links of one life; as many as a worker tells of."""
MEASURED_TOKENS: Final = 256
"""A prompt with fewer to compute tells of what any prompt takes, not of how fast tokens are computed."""


@dataclass(slots=True)
class _Link:
    """From a prefill worker to one peer."""

    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes and microseconds that were told of last, by provider."""
    pace: Pace = field(default_factory=Pace)
    bytes_per_s: float = DEFAULT_BYTES_PER_S
    """By that pace, where there is one."""


_UNKNOWN: Final = _Link()
"""One that nothing was told of."""


@dataclass(slots=True)
class _Known:
    """One life of one worker, besides what stands in arrays."""

    slot: int
    """Where it stands there."""
    done_at: float = 0.0
    """When its last prompt was done, by the clock."""
    pace: Pace = field(default_factory=Pace)
    """Tokens per second that it computes."""
    links: dict[WorkerId, _Link] = field(default_factory=dict)


@dataclass(slots=True)
class Underway:
    """A room between its sending and the arrival of its KV. Made by PairBook.begin."""

    book: PairBook
    prefill: WorkerLife
    known: _Known
    tokens: int
    """That prefill has to compute."""
    moving_s: float
    """That their move is thought to take."""
    began: float
    open: bool = True
    """Prefill has still to do it."""

    def arrived(self) -> None:
        """Its KV has: tells of how fast its worker computes."""
        self.book.arrived(self)

    def done(self) -> None:
        """It is over, or has failed. Idempotent."""
        self.book.done(self)


class PairBook:
    """What is known of each worker, in arrays where a choice among a thousand asks for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._known: OrderedDict[WorkerLife, _Known] = OrderedDict()
        self._queued = np.zeros(MAX_LIVES)
        """Tokens of prompts that are not done, by slot."""
        self._paces = np.full(MAX_LIVES, np.nan)
        """Tokens per second; not a number while there are none."""
        self._free = np.full(MAX_LIVES, np.inf)
        """Pages that are free or could be; infinite for a worker that has not said."""
        self._unused = list(range(MAX_LIVES))
        self._usual: float | None = None
        """Pace of a worker that is new; None: to be made anew."""
        self._slots: dict[Role, tuple[Sequence[WorkerLife], NDArray[np.intp]]] = {}
        """Of the candidates that were last asked for."""

    def saw_free(self, life: WorkerLife, pages: float) -> None:
        """A worker has said how many pages are free or could be; infinite: it does not say."""
        self._free[self._of(life).slot] = pages

    def saw_moved(self, prefill: WorkerLife, peer: WorkerId, provider: str, size: int, us: int) -> None:
        """A prefill worker has said how many bytes it has moved to a peer, and in how long, in all of its life."""
        links = self._of(prefill).links
        if peer in links or len(links) < MAX_LINKS:
            _moved(links.setdefault(peer, _Link()), provider, size, us)

    def begin(self, prompt: Prompt, lives: tuple[WorkerLife, WorkerLife], held_tokens: tuple[int, int]) -> Underway:
        """A room is sent. lives, held_tokens: of prefill and of decode."""
        prefill, decode = lives
        tokens = max(1, prompt.tokens - held_tokens[0])
        moving_s = max(0, prompt.tokens - held_tokens[1]) * prompt.token_bytes / self.speed(prefill, decode)
        self._queued[self._of(prefill).slot] += tokens
        return Underway(self, prefill, self._of(prefill), tokens, moving_s, self._clock())

    def arrived(self, room: Underway) -> None:
        """See Underway.arrived."""
        known, now = room.known, self._clock()
        # Prompts are computed one after the other: this one had the worker since the one before it was done.
        busy_s = now - max(room.began, known.done_at)
        known.done_at = now
        if room.tokens >= MEASURED_TOKENS and self._known.get(room.prefill) is known:
            known.pace.saw(room.tokens, max(busy_s - room.moving_s, busy_s / 10))
            self._paces[known.slot] = known.pace.per_s or np.nan
            self._usual = None
        self.done(room)

    def done(self, room: Underway) -> None:
        """See Underway.done."""
        if room.open and self._known.get(room.prefill) is room.known:
            self._queued[room.known.slot] -= room.tokens
        room.open = False

    def cheapest(
        self, prompt: Prompt, prefills: Candidates, decodes: Candidates, held: KvMatch, fits: Fits, bits: int
    ) -> tuple[PrefillSide, DecodeSide] | None:
        """The pair that costs a prompt least; None if none fits. bits: 32 random ones."""
        ours, theirs = self._slots_of(Role.PREFILL, prefills), self._slots_of(Role.DECODE, decodes)
        held_ours, held_theirs = (_held_tokens(one, held, prompt.page_size) for one in (prefills, decodes))
        queued, paces, free = self._queued[ours], self._paces[ours], self._free[theirs]
        np.copyto(paces, self._usual_pace(), where=np.isnan(paces))

        def prefill(place: int) -> PrefillSide:
            return PrefillSide(prefills.lives[place], queued[place], paces[place], _at(held_ours, place))

        def decode(place: int) -> DecodeSide:
            load = float(decodes.loads[place])
            return DecodeSide(decodes.lives[place], load, free[place], _at(held_theirs, place))

        few = cheap_prefills(prompt, queued, paces, held_ours, bits)
        others = cheap_decodes(prompt, decodes.loads, free, held_theirs, bits)
        for some, rest in ((few, others), (range(len(prefills)), range(len(decodes)))):
            sides = [prefill(place) for place in some], [decode(place) for place in rest]
            if (found := cheapest_pair(prompt, *sides, self.speeds, fits, bits)) is not None:
                return found
        return None

    def speed(self, prefill: WorkerLife, decode: WorkerLife) -> float:
        """Bytes per second of the link between one rank and its peer."""
        return self.speeds(prefill, (decode,))[0]

    def speeds(self, prefill: WorkerLife, decodes: Sequence[WorkerLife]) -> Sequence[float]:
        """Of the links to each of them."""
        links = self._of(prefill).links
        return [links.get(decode.worker_id, _UNKNOWN).bytes_per_s for decode in decodes]

    def _usual_pace(self) -> float:
        """Of a worker that is new: that of the others."""
        if self._usual is None:
            paces = self._paces[~np.isnan(self._paces)]
            self._usual = float(paces.mean()) if paces.size else DEFAULT_TOKENS_PER_S
        return self._usual

    def _slots_of(self, role: Role, candidates: Candidates) -> NDArray[np.intp]:
        lives, slots = self._slots.get(role, ((), None))
        if slots is None or lives is not candidates.lives:
            slots = np.array([self._of(life).slot for life in candidates.lives], np.intp)
            self._slots[role] = candidates.lives, slots
        return slots

    def _of(self, life: WorkerLife) -> _Known:
        known = self._known.get(life)
        if known is not None:
            self._known.move_to_end(life)
            return known
        if not self._unused:
            _, forgotten = self._known.popitem(last=False)
            self._forget(forgotten.slot)
        known = self._known[life] = _Known(self._unused.pop())
        return known

    def _forget(self, slot: int) -> None:
        self._queued[slot], self._paces[slot], self._free[slot] = 0, np.nan, np.inf
        self._unused.append(slot)
        self._usual = None
        self._slots.clear()


def _held_tokens(candidates: Candidates, held: KvMatch, page_size: int) -> NDArray[np.int64] | int:
    """What each holds of a prompt; 0 if nobody holds any."""
    if not held.most:
        return 0
    tokens = np.zeros(len(candidates), np.int64)
    for pages, places in candidates.holders(held):
        tokens[places] = pages * page_size
    return tokens


def _at(held: NDArray[np.int64] | int, place: int) -> int:
    return held if isinstance(held, int) else int(held[place])


def _moved(link: _Link, provider: str, size: int, us: int) -> None:
    size_before, us_before = link.told.get(provider, (0, 0))
    if size > size_before and us > us_before:
        link.pace.saw(size - size_before, (us - us_before) / 1e6)
        link.bytes_per_s = link.pace.per_s or DEFAULT_BYTES_PER_S
    link.told[provider] = (size, us)
