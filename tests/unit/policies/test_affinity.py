"""What policies promise that go by a key, on seeded traces."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.affinity import NO_KEY, AffinityKey, Homes, key_of_prefix, key_of_text, ranks, worker_hash
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.policies import Candidate, PolicyName, Turn, choose
from tests.support.policies.trace import Trace

SESSIONS = [f"session-{number}" for number in range(1000)]
EIGHT = {f"w{number}": 16 for number in range(8)}


def turn_of(trace: Trace, session: str, load_cap: float = 1.5) -> Turn:
    return replace(trace.turn(), session=key_of_text(session), load_cap=load_cap)


def homes(places: dict[str, int]) -> dict[str, str]:
    """The worker of each session on an idle cluster."""
    trace = Trace(places)
    return {
        session: trace.request(PolicyName.CONSISTENT_HASH, turn_of(trace, session), lasts=0) for session in SESSIONS
    }


def moved(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """The sessions whose worker has changed, with the former one."""
    return {session: before[session] for session in SESSIONS if before[session] != after[session]}


def test_a_key_has_its_worker_whatever_the_dice_the_seed_and_the_life():
    assert homes(EIGHT) == homes(EIGHT)
    home, trace = homes(EIGHT), Trace(EIGHT, seed=8)
    first = [trace.request(PolicyName.CONSISTENT_HASH, turn_of(trace, session), 0) for session in SESSIONS]
    assert first == list(home.values())
    again = [Candidate(replace(one.life, incarnation=Incarnation(9)), 0, 16) for one in trace.candidates()]
    for session in SESSIONS[:50]:
        chosen = choose(PolicyName.CONSISTENT_HASH, again, turn_of(trace, session), Role.DECODE)
        assert chosen.life.worker_id == home[session], "a worker that was restarted has its keys again"


def test_keys_are_hashed_alike_by_every_gateway_of_every_release():
    assert list(homes(EIGHT).values())[:8] == ["w0", "w4", "w6", "w1", "w3", "w2", "w0", "w5"]
    assert key_of_text("a") != key_of_text("b")
    assert key_of_text("") is NO_KEY


def test_when_a_worker_leaves_only_its_keys_move_and_they_come_back_with_it():
    before = homes(EIGHT)
    for gone in EIGHT:
        after = homes({name: places for name, places in EIGHT.items() if name != gone})
        left = moved(before, after)
        assert set(left.values()) == {gone}
        assert len(left) == Counter(before.values())[gone]
        assert max(Counter(after[session] for session in left).values()) < len(left) / 2, "they go to many"
    assert homes(EIGHT) == before


def test_when_one_joins_its_share_moves_and_to_nobody_else():
    before, after = homes(EIGHT), homes({**EIGHT, "new": 16})
    left = moved(before, after)
    assert {after[session] for session in left} == {"new"}
    assert len(left) / len(SESSIONS) == pytest.approx(1 / 9, rel=0.2)
    assert set(left.values()) == set(EIGHT), "each gives some"


def test_keys_are_shared_by_places():
    counts = Counter(homes({"small": 8, "large": 24}).values())
    assert counts["large"] / len(SESSIONS) == pytest.approx(3 / 4, rel=0.05)


def hottest_over_mean(load_cap: float) -> float:
    """The most rooms that a worker had when it was given one, over the mean then, with a few sessions that ask most."""
    trace, dice, worst = Trace(EIGHT), random.Random(5), 0.0
    weights = [1 / (1 + place) for place in range(len(SESSIONS))]
    for session in dice.choices(SESSIONS, weights, k=4000):
        name = trace.request(PolicyName.CONSISTENT_HASH, turn_of(trace, session, load_cap), trace.lasting(busy=100))
        mean = trace.rooms.total() / len(EIGHT)
        assert trace.rooms[name] <= ceil(load_cap * mean)
        if mean >= 8:
            worst = max(worst, trace.rooms[name] / mean)
    return worst


@pytest.mark.parametrize("load_cap", [1.1, 1.25, 1.5])
def test_the_hottest_worker_stays_below_the_cap(load_cap):
    assert hottest_over_mean(load_cap) <= load_cap + 1 / 8, "at most one room more than the cap, of eight or more"


def test_without_a_cap_a_few_sessions_would_make_a_worker_hot():
    assert hottest_over_mean(load_cap=100) > 2


def kept_at_home(load_cap: float, busy: int) -> float:
    """Share of requests that went to the worker of their session, with as many at work."""
    trace, dice, home = Trace(EIGHT), random.Random(5), homes(EIGHT)
    asked = dice.choices(SESSIONS, k=2000)
    kept = [
        home[session]
        == trace.request(PolicyName.CONSISTENT_HASH, turn_of(trace, session, load_cap), trace.lasting(busy))
        for session in asked
    ]
    return sum(kept) / len(kept)


def test_a_wider_cap_and_more_requests_at_work_keep_more_sessions_at_home():
    few, many = ([kept_at_home(cap, busy) for cap in (1.25, 1.5, 2.0)] for busy in (8, 256))
    assert few == sorted(few)
    assert few[0] > 0.6
    assert few[2] > 0.85
    assert all(before < after for before, after in zip(few, many, strict=True))
    assert many[1] > 0.98


def test_without_a_key_two_are_drawn():
    trace = Trace(EIGHT)
    for _ in trace.requests(PolicyName.CONSISTENT_HASH, 200, busy=40):
        candidates, turn = trace.candidates(), trace.turn()
        by_hash, by_two = (
            choose(policy, candidates, turn, Role.PREFILL)
            for policy in (PolicyName.CONSISTENT_HASH, PolicyName.POWER_OF_TWO)
        )
        assert by_hash == by_two


@given(
    st.dictionaries(
        st.text("abcd", min_size=1, max_size=4), st.tuples(st.integers(0, 999), st.integers(1, 99)), min_size=1
    ),
    st.binary(min_size=1, max_size=16),
    st.floats(1, 3),
)
def test_there_always_is_a_worker_below_the_cap(workers, key, load_cap):
    candidates = [
        Candidate(WorkerLife(WorkerId(name), Incarnation(1)), in_flight, places)
        for name, (in_flight, places) in workers.items()
    ]
    turn = Turn(0, 0, AffinityKey(key), load_cap=load_cap)
    chosen = choose(PolicyName.CONSISTENT_HASH, candidates, turn, Role.DECODE)
    rooms, places = 1 + sum(one.in_flight for one in candidates), sum(one.max_running for one in candidates)
    assert chosen.in_flight + 1 <= ceil(load_cap * rooms * chosen.max_running / places)


def hits(policy: PolicyName, busy: int) -> float:
    """Share of prompts whose beginning was in the cache of their worker, with 60 beginnings and room for 12 in each."""
    trace, dice = Trace(EIGHT), random.Random(5)
    caches = {name: OrderedDict[int, None]() for name in EIGHT}
    found = 0
    for _ in range(3000):
        beginning = dice.randrange(60)
        prompt = [*range(beginning, beginning + 128), dice.randrange(1000), dice.randrange(1000)]
        turn = replace(trace.turn(), prefix=key_of_prefix(prompt, 128))
        cache = caches[trace.request(policy, turn, trace.lasting(busy))]
        found += beginning in cache
        cache[beginning] = None
        cache.move_to_end(beginning)
        if len(cache) > 12:
            cache.popitem(last=False)
    return found / 3000


def test_prompts_that_begin_alike_meet_where_it_is_computed():
    for busy in (8, 128):
        assert hits(PolicyName.PREFIX_HASH, busy) > 0.7
        assert hits(PolicyName.LEAST_LOAD, busy) < 0.3


def test_the_prefix_is_so_many_tokens_or_all_of_fewer():
    beginning = tuple(range(100, 120))
    assert key_of_prefix((*beginning, 7), 20) == key_of_prefix((*beginning, 8, 9), 20) == key_of_prefix(beginning, 20)
    assert key_of_prefix((*beginning, 7), 21) != key_of_prefix((*beginning, 8), 21)
    assert key_of_prefix(beginning, 64) == key_of_prefix(beginning, 20)
    assert key_of_prefix([2**31 - 1], 1) != key_of_prefix([2**31 - 2], 1)
    assert key_of_prefix((), 20) is NO_KEY


def test_each_policy_goes_by_its_own_key():
    candidates = Trace(EIGHT).candidates()
    by = {
        policy: {
            (session, prefix): choose(
                policy, candidates, Turn(0, 0, key_of_text(session), key_of_text(prefix)), Role.PREFILL
            ).life.worker_id
            for session in SESSIONS[:30]
            for prefix in ("a", "b", "c")
        }
        for policy in (PolicyName.CONSISTENT_HASH, PolicyName.PREFIX_HASH)
    }
    assert len({chosen for (_, prefix), chosen in by[PolicyName.PREFIX_HASH].items() if prefix == "a"}) == 1
    assert len({chosen for (one, _), chosen in by[PolicyName.CONSISTENT_HASH].items() if one == SESSIONS[0]}) == 1
    assert len(set(by[PolicyName.CONSISTENT_HASH].values())) == 8


@given(st.binary(min_size=1, max_size=16), st.text(min_size=1, max_size=20), st.integers(1, 4096))
def test_ranks_are_positive_and_finite(key, worker, weight):
    weights = np.array([weight])
    homes = Homes(np.array([worker_hash(WorkerId(worker))], np.uint64), weights)
    (found,) = ranks(homes.draw(AffinityKey(key)), weights)
    assert 0 < found < float("inf")
