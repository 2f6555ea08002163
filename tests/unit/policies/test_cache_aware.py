"""What cache_aware promises, on seeded traces of prompts on caches that evict."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from functools import cache

import pytest

from tandem.core.affinity import key_of_prefix
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.kv_index import KvChange, KvIndex, PageHash, page_hashes
from tandem.core.policies import Candidate, PolicyName, Turn, choose
from tests.support.policies.trace import Trace

EIGHT = {f"w{number}": 16 for number in range(8)}
PAGE = 16
SYSTEM = list(range(10**6, 10**6 + 10 * PAGE))
"""What all prompts of some traces begin with."""


def life_of(name: str) -> WorkerLife:
    return WorkerLife(WorkerId(name), Incarnation(1))


@dataclass
class Caches:
    """A prefix cache per worker, and the index of them, which knows of each page as soon as it is there."""

    pages: int
    index: KvIndex = field(default_factory=lambda: KvIndex(1 << 20))
    held: dict[str, OrderedDict[PageHash, None]] = field(
        default_factory=lambda: {name: OrderedDict() for name in EIGHT}
    )
    _numbers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name in EIGHT:
            self._tell(name, KvChange(0, cleared=True))

    def _tell(self, name: str, change: KvChange) -> None:
        assert self.index.apply(life_of(name), replace(change, sequence=self._numbers[name]))
        self._numbers[name] += 1

    def serve(self, name: str, prompt: list[PageHash]) -> int:
        """Computes a prompt on a worker; returns how many of its pages were there."""
        cache = self.held[name]
        found = next((depth for depth, page in enumerate(prompt) if page not in cache), len(prompt))
        for page in reversed(prompt):
            cache[page] = None
            cache.move_to_end(page)
        gone = [cache.popitem(last=False)[0] for _ in range(max(0, len(cache) - self.pages))]
        self._tell(name, KvChange(0, removed=tuple(gone)))
        self._tell(name, KvChange(0, stored=tuple(page for page in prompt if page in cache)))
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of a trace."""

    hit_rate: float
    """Share of all prompt pages that were there."""
    hottest: float
    """The most rooms that a worker had when it was given one, over the mean then, while that was eight or more."""


@cache
def conversations(policy: PolicyName, busy: int, *, shared: bool, pages: int = 400) -> Outcome:
    """200 conversations that take turns at random, grow by 4 pages a turn and begin anew after 10. shared: they have
    their system prompt in common."""
    trace, dice, caches = Trace(EIGHT), random.Random(5), Caches(pages)
    turns = Counter[int]()
    found = total = 0
    hottest = 0.0
    for _ in range(2000):
        one = int(200 * dice.random() ** 2)
        turns[one] += 1
        length = 4 * PAGE * (1 + turns[one] % 10)
        own = [one * 100_000 + turns[one] // 10 * 1000 + token for token in range(length)]
        ids = SYSTEM + own if shared else own
        prompt = page_hashes(ids, PAGE)
        turn = replace(trace.turn(), prefix=key_of_prefix(ids, 128), held=caches.index.match([prompt]))
        name = trace.request(policy, turn, trace.lasting(busy))
        mean = trace.rooms.total() / len(EIGHT)
        if mean >= 8:
            hottest = max(hottest, trace.rooms[name] / mean)
        found += caches.serve(name, prompt)
        total += len(prompt)
    return Outcome(found / total, hottest)


@pytest.mark.parametrize("busy", [8, 100])
def test_it_finds_more_than_keys_do_and_far_more_than_chance(busy: int) -> None:
    by = {
        policy: conversations(policy, busy, shared=False)
        for policy in (PolicyName.CACHE_AWARE, PolicyName.PREFIX_HASH, PolicyName.LEAST_LOAD)
    }
    assert by[PolicyName.CACHE_AWARE].hit_rate > by[PolicyName.PREFIX_HASH].hit_rate
    assert by[PolicyName.CACHE_AWARE].hit_rate > 2 * by[PolicyName.LEAST_LOAD].hit_rate


@pytest.mark.parametrize("busy", [8, 100])
def test_a_system_prompt_that_all_share_does_not_hide_what_is_their_own(busy: int) -> None:
    """prefix_hash sees the first tokens only, which are the same for all: it spreads them by the cap."""
    aware, hashed = (
        conversations(policy, busy, shared=True, pages=500)
        for policy in (PolicyName.CACHE_AWARE, PolicyName.PREFIX_HASH)
    )
    assert aware.hit_rate > hashed.hit_rate + 0.15


def test_the_load_stays_below_the_cap() -> None:
    assert conversations(PolicyName.CACHE_AWARE, 100, shared=False).hottest <= 1.5 + 1 / 8


def with_rooms(*rooms: int) -> list[Candidate]:
    return [Candidate(life_of(f"w{number}"), in_flight, 16) for number, in_flight in enumerate(rooms)]


def chosen(candidates: list[Candidate], held: dict[str, int], prefix: str = "") -> str:
    """The worker of a prompt of 8 pages of which each holds so many."""
    prompt, index = page_hashes(range(8 * PAGE), PAGE), KvIndex(1000)
    for name, depth in held.items():
        index.apply(life_of(name), KvChange(0, stored=tuple(prompt[:depth]), cleared=True))
    turn = Turn(0, 0, prefix=key_of_prefix(list(prefix.encode()), 8), held=index.match([prompt]))
    return choose(PolicyName.CACHE_AWARE, candidates, turn, Role.PREFILL).life.worker_id


def test_the_longest_prefix_wins_below_the_cap_and_the_next_longest_above() -> None:
    held = {"w0": 6, "w1": 4}
    assert chosen(with_rooms(1, 1, 0), held) == "w0"
    assert chosen(with_rooms(9, 1, 0), held) == "w1"
    assert chosen(with_rooms(9, 9, 0, 0), held) in ("w2", "w3")


def test_of_equals_the_less_loaded_is_taken() -> None:
    assert chosen(with_rooms(2, 1, 2), {"w0": 3, "w1": 3, "w2": 2}) == "w1"


def test_who_is_not_to_choose_from_does_not_count() -> None:
    assert chosen(with_rooms(1, 1), {"w7": 8, "w1": 1}) == "w1"


def test_what_nobody_holds_goes_where_prompts_that_begin_alike_go() -> None:
    by_key = Turn(0, 0, prefix=key_of_prefix(list(b"document"), 8))
    home = choose(PolicyName.PREFIX_HASH, with_rooms(0, 0, 0), by_key, Role.PREFILL).life.worker_id
    assert chosen(with_rooms(0, 0, 0), {}, "document") == home
