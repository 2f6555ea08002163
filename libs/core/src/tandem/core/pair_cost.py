"""What a pair of workers costs a prompt, in seconds until decode has it, and the cheapest of all pairs.

cost = (tokens that wait at prefill + tokens that it has to compute) / its tokens per second
     + bytes that decode does not hold / bytes per second of the link
     + how crowded decode is
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.core.ids import WorkerLife

DEFAULT_TOKENS_PER_S: Final = 10_000.0
"""Of a prefill worker, while nothing was measured of any."""
DEFAULT_BYTES_PER_S: Final = 10e9
"""Of a link that nothing was measured of: one that is thought fast is tried, and so measured."""
FULL_S: Final = 0.1
"""What a decode worker costs whose places are all taken; in proportion below and above."""
NO_PAGES_S: Final = 10.0
"""What one costs that has no free pages for the prompt: it is taken only where there is no other."""
PAIRED: Final = 8
"""Workers of each role, the cheapest by themselves, whose pairs are compared."""
_Side = TypeVar("_Side")
_KEPT: Final = 0.9
"""Share of what was measured before that still counts after the next measurement."""


@dataclass(slots=True)
class Pace:
    """An amount per second, of which the last measurements count most."""

    amount: float = 0.0
    seconds: float = 0.0

    def saw(self, amount: float, seconds: float) -> None:
        """One measurement. seconds: 0 or more."""
        self.amount = self.amount * _KEPT + amount
        self.seconds = self.seconds * _KEPT + seconds

    @property
    def per_s(self) -> float | None:
        """None while there is none."""
        return self.amount / self.seconds if self.amount > 0 and self.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be computed and moved."""

    tokens: int
    page_size: int
    token_bytes: float
    """Of KV, on one rank."""


@dataclass(frozen=True, slots=True)
class PrefillSide:
    """A prefill worker that may take it."""

    life: WorkerLife
    queued_tokens: float
    """Of this gateway's prompts that are not done there."""
    tokens_per_s: float
    held_tokens: int = 0

    def cost_s(self, prompt: Prompt) -> float:
        """Until the prompt is computed."""
        return (self.queued_tokens + max(1, prompt.tokens - self.held_tokens)) / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class DecodeSide:
    """A decode worker that may take it."""

    life: WorkerLife
    load: float
    """Rooms per place."""
    free_pages: float = math.inf
    """Pages that are free or could be; infinite if it has not said."""
    held_tokens: int = 0

    def moved_bytes(self, prompt: Prompt) -> float:
        """What has to come to one rank."""
        return max(0, prompt.tokens - self.held_tokens) * prompt.token_bytes

    def cost_s(self, prompt: Prompt) -> float:
        """How crowded it is."""
        need = -(-max(0, prompt.tokens - self.held_tokens) // prompt.page_size)
        return FULL_S * self.load + (NO_PAGES_S if need > self.free_pages else 0)


Speeds = Callable[[WorkerLife, Sequence[WorkerLife]], Sequence[float]]
"""Bytes per second of the links from a prefill worker to each of some decode workers."""
Fits = Callable[[WorkerLife, WorkerLife], bool]
"""Whether the layouts of a prefill and a decode worker fit."""


def cheapest_pair(
    prompt: Prompt,
    prefills: Sequence[PrefillSide],
    decodes: Sequence[DecodeSide],
    speeds: Speeds,
    fits: Fits,
    bits: int = 0,
) -> tuple[PrefillSide, DecodeSide] | None:
    """The pair that costs least; None if none fits. bits: random, so that equals take turns.

    Pairs are made of the PAIRED workers of each role that are cheapest by themselves, as long as any of these fit.
    """
    ours = _turned([(side.cost_s(prompt), side) for side in prefills], bits)
    theirs = _turned([(side.cost_s(prompt), side.moved_bytes(prompt), side) for side in decodes], bits >> 16)
    few_ours = nsmallest(PAIRED, ours, key=lambda one: one[0])
    few_theirs = nsmallest(PAIRED, theirs, key=lambda one: one[0] + one[1] / DEFAULT_BYTES_PER_S)
    for some, others in ((few_ours, few_theirs), (ours, theirs)):
        if not some or not others:
            return None
        lives = [decode.life for _, _, decode in others]
        moved = np.array([size for _, size, _ in others])
        crowd_s = np.array([seconds for seconds, _, _ in others])
        costs = np.array([computing_s + moved / speeds(prefill.life, lives) for computing_s, prefill in some]) + crowd_s
        for place in costs.argsort(axis=None, kind="stable").tolist():
            prefill, decode = some[place // len(lives)][1], others[place % len(lives)][2]
            if fits(prefill.life, decode.life):
                return prefill, decode
    return None


Floats = NDArray[np.float64]
"""One number for each of many workers."""
Held = NDArray[np.int64] | int
"""Tokens of a prompt that each of them holds; 0 if nobody holds any."""


def cheap_prefills(prompt: Prompt, queued_tokens: Floats, tokens_per_s: Floats, held: Held, bits: int) -> list[int]:
    """Which of many prefill workers `cheapest_pair` needs to look at: places of the PAIRED that are cheapest."""
    return _cheapest((queued_tokens + np.maximum(1, prompt.tokens - held)) / tokens_per_s, bits)


def cheap_decodes(prompt: Prompt, loads: Floats, free_pages: Floats, held: Held, bits: int) -> list[int]:
    """Which of many decode workers it needs to look at. free_pages: infinite for one that has not said."""
    rest = np.maximum(0, prompt.tokens - held)
    lacks = -(-rest // prompt.page_size) > free_pages
    moving_s = rest * (prompt.token_bytes / DEFAULT_BYTES_PER_S)
    return _cheapest(FULL_S * loads + NO_PAGES_S * lacks + moving_s, bits >> 16)


def _cheapest(costs: Floats, bits: int) -> list[int]:
    count = len(costs)
    if count <= PAIRED:
        return list(range(count))
    start = bits % count
    turned = np.roll(costs, -start)
    places: NDArray[np.intp] = (np.argpartition(turned, PAIRED)[:PAIRED] + start) % count
    found: list[int] = places.tolist()
    return found


def _turned(sides: Sequence[_Side], bits: int) -> list[_Side]:
    start = bits % len(sides) if sides else 0
    return [*sides[start:], *sides[:start]]
