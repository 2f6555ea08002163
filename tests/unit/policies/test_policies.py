"""Routing policies: pure, deterministic, total."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.policies import POLICIES, Candidate, PolicyName, Turn, choose, policy_named


def candidate(name: str, in_flight: int = 0, max_running: int = 4) -> Candidate:
    return Candidate(WorkerLife(WorkerId(name), Incarnation(1)), in_flight, max_running)


def picks(policy: PolicyName, candidates: list[Candidate], turns: int) -> list[str]:
    return [choose(policy, candidates, Turn(n, n * 7919), Role.DECODE).life.worker_id for n in range(turns)]


def test_every_name_has_a_policy():
    assert set(POLICIES) == set(PolicyName)


def test_round_robin_takes_turns_in_order_of_id_whatever_order_they_come_in():
    names = [candidate("c"), candidate("a"), candidate("b")]
    assert picks(PolicyName.ROUND_ROBIN, names, 5) == ["a", "b", "c", "a", "b"]


def test_random_follows_its_bits():
    names = [candidate("a"), candidate("b")]
    assert choose(PolicyName.RANDOM, names, Turn(0, 6), Role.PREFILL).life.worker_id == "a"
    assert choose(PolicyName.RANDOM, names, Turn(0, 7), Role.PREFILL).life.worker_id == "b"


def test_least_load_weighs_rooms_by_places():
    assert picks(PolicyName.LEAST_LOAD, [candidate("small", 2, 4), candidate("large", 3, 16)], 1) == ["large"]


def test_least_load_lets_equals_take_turns():
    names = [candidate("busy", 1), candidate("a"), candidate("b")]
    assert Counter(picks(PolicyName.LEAST_LOAD, names, 6)) == {"a": 3, "b": 3}


def test_power_of_two_takes_the_less_loaded_of_the_two_that_are_drawn():
    names = [candidate("a", 3), candidate("b", 2), candidate("c", 1)]
    every_pair = picks(PolicyName.POWER_OF_TWO, names, 600)
    assert Counter(every_pair).keys() == {"b", "c"}, "the fullest loses against any other"
    assert 340 <= Counter(every_pair)["c"] <= 460, "the emptiest is drawn in two of three pairs"


def test_power_of_two_draws_two_different_ones_and_takes_any_of_equals():
    assert Counter(picks(PolicyName.POWER_OF_TWO, [candidate("full", 4), candidate("idle")], 100)) == {"idle": 100}
    assert picks(PolicyName.POWER_OF_TWO, [candidate("alone", 4)], 2) == ["alone"] * 2
    equals = Counter(picks(PolicyName.POWER_OF_TWO, [candidate(name) for name in "abcd"], 400))
    assert equals.keys() == set("abcd")
    assert min(equals.values()) >= 60


@pytest.mark.parametrize("policy", PolicyName)
@pytest.mark.parametrize("role", Role)
def test_nobody_to_choose_from(policy, role):
    with pytest.raises(TandemError) as caught:
        choose(policy, [], Turn(0, 0), role)
    assert caught.value.reason is ErrorReason.NO_WORKER
    assert role.value in caught.value.message


def test_names():
    assert policy_named("least_load") is PolicyName.LEAST_LOAD
    with pytest.raises(TandemError) as caught:
        policy_named("best")
    assert caught.value.field == "policy"
    assert "random, round_robin, least_load" in caught.value.message


@given(
    st.sampled_from(PolicyName),
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1
    ),
    st.integers(0, 2**40),
    st.integers(0, 2**64),
    st.randoms(use_true_random=False),
)
def test_a_choice_is_a_candidate_and_does_not_hang_on_their_order(policy, workers, count, bits, rng):
    names = [candidate(name, *load) for name, load in workers.items()]
    chosen = choose(policy, names, Turn(count, bits), Role.PREFILL)
    assert chosen in names
    rng.shuffle(names)
    assert choose(policy, names, Turn(count, bits), Role.PREFILL) == chosen
