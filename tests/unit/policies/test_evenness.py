"""How evenly policies spread rooms, on seeded traces."""

from __future__ import annotations

from collections import Counter

from tandem.core.policies import PolicyName
from tests.support.policies.trace import Trace


def fullest(policy: PolicyName) -> int:
    """Most rooms that one of eight workers had at any time, with about 80 at work."""
    trace = Trace({f"w{number}": 16 for number in range(8)})
    return max(max(trace.rooms.values()) for _ in trace.requests(policy, 5000, busy=80))


def test_power_of_two_is_nearly_as_even_as_the_least_load_and_far_from_random():
    least, two, drawn = (
        fullest(policy) for policy in (PolicyName.LEAST_LOAD, PolicyName.POWER_OF_TWO, PolicyName.RANDOM)
    )
    assert least <= two <= least + 3
    assert two + 6 <= drawn


def rooms_of_a_newcomer(policy: PolicyName) -> int:
    """How many of the first ten requests go to an idle worker that has joined seven busy ones."""
    trace = Trace({f"w{number}": 16 for number in range(7)})
    for _ in trace.requests(policy, 1000, busy=80):
        pass
    trace.places["new"] = 16
    return Counter(trace.requests(policy, 10, busy=80))["new"]


def test_power_of_two_does_not_run_to_a_worker_that_has_just_come():
    assert rooms_of_a_newcomer(PolicyName.LEAST_LOAD) >= 9
    assert rooms_of_a_newcomer(PolicyName.POWER_OF_TWO) <= 5, "two draws of eight find it in a quarter of the cases"
