"""What least_cost promises: on pairs made by hand, against trying all pairs, and on a seeded trace."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.ids import Incarnation, WorkerId, WorkerLife
from tandem.core.pair_cost import (
    DEFAULT_BYTES_PER_S,
    NO_PAGES_S,
    PAIRED,
    DecodeSide,
    Pace,
    PrefillSide,
    Prompt,
    Speeds,
    cheap_decodes,
    cheap_prefills,
    cheapest_pair,
)

TOKEN_BYTES = 100_000.0


def life(name: str) -> WorkerLife:
    return WorkerLife(WorkerId(name), Incarnation(1))


def prompt(tokens: int) -> Prompt:
    return Prompt(tokens, 16, TOKEN_BYTES)


def prefill(name: str, queued: float = 0, pace: float = 10_000, held: int = 0) -> PrefillSide:
    return PrefillSide(life(name), queued, pace, held)


def decode(name: str, load: float = 0, pages: float = math.inf, held: int = 0) -> DecodeSide:
    return DecodeSide(life(name), load, pages, held)


def fast(ours: WorkerLife, theirs: WorkerLife) -> float:
    return DEFAULT_BYTES_PER_S


def anyone(ours: WorkerLife, theirs: WorkerLife) -> bool:
    return True


Speed = Callable[[WorkerLife, WorkerLife], float]


def rows(speed: Speed) -> Speeds:
    return lambda ours, theirs: [speed(ours, each) for each in theirs]


def cost_s(one: Prompt, ours: PrefillSide, theirs: DecodeSide, speed: Speed) -> float:
    """By itself, as the module tells it."""
    return ours.cost_s(one) + theirs.moved_bytes(one) / speed(ours.life, theirs.life) + theirs.cost_s(one)


def names(
    tokens: int, prefills: list[PrefillSide], decodes: list[DecodeSide], speed=fast, fits=anyone, bits: int = 0
) -> tuple[str, str]:
    found = cheapest_pair(prompt(tokens), prefills, decodes, rows(speed), fits, bits)
    assert found is not None
    return found[0].life.worker_id, found[1].life.worker_id


def test_a_slow_link_is_avoided_for_long_prompts_and_not_for_short_ones() -> None:
    def speed(ours: WorkerLife, theirs: WorkerLife) -> float:
        return 1e8 if theirs == life("d0") else 1e10

    # d0 is idle and d1 is not: what moves slowly has to be worth that.
    decodes = [decode("d0"), decode("d1", load=0.8)]
    assert names(8_000, [prefill("p0")], decodes, speed) == ("p0", "d1")
    assert names(50, [prefill("p0")], decodes, speed) == ("p0", "d0")


def test_a_longer_held_beginning_wins_until_its_queue_costs_more() -> None:
    for queued, chosen in ((0, "p0"), (2_900, "p0"), (3_100, "p1")):
        prefills = [prefill("p0", queued=queued, held=4_000), prefill("p1", held=1_000)]
        assert names(5_000, prefills, [decode("d0")])[0] == chosen


def test_what_decode_holds_is_not_moved() -> None:
    def slow(ours: WorkerLife, theirs: WorkerLife) -> float:
        return 1e9

    decodes = [decode("d0"), decode("d1", load=0.5, held=3_968)]
    assert names(4_000, [prefill("p0")], decodes, slow)[1] == "d1"


def test_a_slower_worker_gets_a_prompt_only_while_the_others_queue_is_longer() -> None:
    slow, busy = prefill("p0", pace=2_000), prefill("p1", queued=3_000)
    assert names(1_000, [slow, busy], [decode("d0")])[0] == "p1"
    assert names(1_000, [slow, prefill("p1", queued=5_000)], [decode("d0")])[0] == "p0"


def test_a_decode_worker_without_pages_is_the_last_choice() -> None:
    full, crowded = decode("d0", pages=10), decode("d1", load=3, pages=100)
    assert names(1_000, [prefill("p0")], [full, crowded])[1] == "d1"
    assert names(100, [prefill("p0")], [full, crowded])[1] == "d0", "it has enough for a short one"
    assert names(1_000, [prefill("p0")], [full])[1] == "d0"
    assert full.cost_s(prompt(1_000)) >= NO_PAGES_S


def test_equals_take_turns() -> None:
    dice = random.Random(3)
    idle = [prefill(f"p{number}") for number in range(20)], [decode(f"d{number}") for number in range(20)]
    found = {names(100, *idle, bits=dice.getrandbits(32)) for _ in range(400)}
    assert len({ours for ours, _ in found}) == len({theirs for _, theirs in found}) == 20


def test_only_those_that_fit_are_paired_also_where_the_cheapest_do_not() -> None:
    prefills = [prefill(f"p{number}") for number in range(30)]
    decodes = [decode(f"d{number}") for number in range(30)]
    decodes[29] = decode("d29", load=5)

    def fits(ours: WorkerLife, theirs: WorkerLife) -> bool:
        return theirs.worker_id == "d29" and ours.worker_id == "p7"

    assert names(100, prefills, decodes, fits=fits) == ("p7", "d29")
    assert cheapest_pair(prompt(1), prefills, decodes, rows(fast), lambda *_: False) is None
    assert cheapest_pair(prompt(1), [], decodes, rows(fast), anyone) is None


sides = st.tuples(st.integers(0, 9_000), st.integers(100, 20_000), st.integers(0, 2_000))


@given(
    st.lists(sides, min_size=1, max_size=8),
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 200)), min_size=1, max_size=8),
    st.integers(1, 4_000),
    st.integers(0, 2**32 - 1),
)
def test_of_a_few_workers_no_pair_costs_less(ours, theirs, tokens: int, bits: int) -> None:
    prefills = [prefill(f"p{place}", *side) for place, side in enumerate(ours)]
    decodes = [decode(f"d{place}", load, pages) for place, (load, pages) in enumerate(theirs)]

    def speed(one: WorkerLife, other: WorkerLife) -> float:
        return 1e8 * (1 + (7 * int(one.worker_id[1:]) + 3 * int(other.worker_id[1:])) % 10)

    found = cheapest_pair(prompt(tokens), prefills, decodes, rows(speed), anyone, bits)
    assert found is not None
    least = min(cost_s(prompt(tokens), one, other, speed) for one in prefills for other in decodes)
    assert cost_s(prompt(tokens), *found, speed) == pytest.approx(least)


@given(
    st.lists(sides, min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 200), st.integers(0, 2_000)), min_size=1, max_size=40),
    st.integers(1, 4_000),
    st.integers(0, 2**32 - 1),
)
def test_of_many_the_cheapest_by_themselves_are_looked_at(ours, theirs, tokens: int, bits: int) -> None:
    one, usual = prompt(tokens), TOKEN_BYTES / DEFAULT_BYTES_PER_S
    prefills = [prefill(f"p{place}", *side) for place, side in enumerate(ours)]
    decodes = [decode(f"d{place}", *side) for place, side in enumerate(theirs)]
    queued, paces, held = (np.array(each, float) for each in zip(*ours, strict=True))
    loads, free, held_there = (np.array(each, float) for each in zip(*theirs, strict=True))
    few = cheap_prefills(one, queued, paces, held.astype(int), bits)
    rest = cheap_decodes(one, loads, free, held_there.astype(int), bits)
    for found, costs in (
        (few, [side.cost_s(one) for side in prefills]),
        (rest, [side.cost_s(one) + max(0, tokens - side.held_tokens) * usual for side in decodes]),
    ):
        assert len(set(found)) == len(found) == min(PAIRED, len(costs))
        assert sorted(costs[place] for place in found) == pytest.approx(sorted(costs)[:PAIRED])


def test_a_pace_is_what_was_measured_last() -> None:
    pace = Pace()
    assert pace.per_s is None
    pace.saw(1_000, 0)
    assert pace.per_s is None
    for _ in range(60):
        pace.saw(1_000, 1)
    assert pace.per_s == pytest.approx(1_000, rel=0.01)
    for _ in range(60):
        pace.saw(1_000, 10)
    assert pace.per_s == pytest.approx(100, rel=0.05)


# ---------------------------------------------------------------- a trace


@dataclass
class Cluster:
    """Four prefill workers, of which one is slow, four decode workers, of which one is behind slow links."""

    costs: bool
    """Whether pairs are chosen by cost; else each role's least loaded."""
    paces: dict[str, float] = field(default_factory=lambda: {"p0": 2_500, "p1": 10_000, "p2": 10_000, "p3": 10_000})
    free_at: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("p0", "p1", "p2", "p3"), 0.0))
    rooms: dict[str, list[float]] = field(default_factory=lambda: {f"d{number}": [] for number in range(4)})
    """When each room ends."""
    waiting: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {f"p{n}": [] for n in range(4)})

    def speed(self, ours: WorkerLife, theirs: WorkerLife) -> float:
        return 2e8 if theirs == life("d0") else 5e9

    def ttft_s(self, now: float, tokens: int, bits: int) -> float:
        """Routes one prompt; returns when decode has it, after now."""
        for name in self.rooms:
            self.rooms[name] = [end for end in self.rooms[name] if end > now]
        for name in self.waiting:
            self.waiting[name] = [(end, size) for end, size in self.waiting[name] if end > now]
        ours, theirs = self._pair(tokens, bits)
        begins = max(now, self.free_at[ours])
        computed = begins + tokens / self.paces[ours]
        self.free_at[ours] = computed
        self.waiting[ours].append((computed, tokens))
        arrives = computed + tokens * TOKEN_BYTES / self.speed(life(ours), life(theirs))
        self.rooms[theirs].append(arrives + 2)
        return arrives - now

    def _pair(self, tokens: int, bits: int) -> tuple[str, str]:
        if not self.costs:
            return (
                min(self.waiting, key=lambda name: (len(self.waiting[name]), (int(name[1:]) + bits) % 4)),
                min(self.rooms, key=lambda name: (len(self.rooms[name]), (int(name[1:]) + bits) % 4)),
            )
        prefills = [
            prefill(name, sum(size for _, size in rooms), self.paces[name]) for name, rooms in self.waiting.items()
        ]
        decodes = [decode(name, len(rooms) / 16) for name, rooms in self.rooms.items()]
        return names(tokens, prefills, decodes, self.speed, bits=bits)


@pytest.mark.parametrize("seed", range(3))
def test_first_tokens_come_sooner_than_by_load(seed: int) -> None:
    dice, now = random.Random(seed), 0.0
    by_cost, by_load = Cluster(costs=True), Cluster(costs=False)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1_500):
        now += dice.expovariate(12)
        tokens, bits = int(dice.paretovariate(1.3) * 300) % 16_000 + 16, dice.getrandbits(32)
        for cluster in (by_cost, by_load):
            times[cluster.costs].append(cluster.ttft_s(now, tokens, bits))
    assert fmean(times[True]) < 0.6 * fmean(times[False])
    assert sorted(times[True])[1_425] < 0.7 * sorted(times[False])[1_425], "the slowest twentieth, too"
