"""What tenants may have: buckets, days, classes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Priority
from tandem.core.refusals import Refusal, Refused
from tandem.core.tenants import DAY_S, Account, Tenant
from tandem.core.token_bucket import TokenBucket

NOON = 1000 * DAY_S + DAY_S / 2


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 50), st.integers(1, 1000)), max_size=60))
def test_no_more_gets_through_than_a_minutes_worth_and_what_has_come_since(
    per_min: int, asks: list[tuple[float, int]]
) -> None:
    bucket, now, taken = TokenBucket(per_min, 0), 0.0, 0
    for passed_s, amount in asks:
        now += passed_s
        if not bucket.wait_s(amount, now):
            bucket.take(amount, now)
            taken += amount
        assert taken <= per_min * (1 + now / 60) + 1e-6


def test_after_the_wait_it_may_be_taken() -> None:
    bucket = TokenBucket(60, 0)
    bucket.take(60, 0)
    wait_s = bucket.wait_s(10, 5)
    assert wait_s == pytest.approx(5)
    assert bucket.wait_s(10, 5 + wait_s) == pytest.approx(0, abs=1e-9)
    bucket.give_back(1000, 10)
    assert bucket.left(10) == 60, "never more than a minute's worth"
    assert bucket.full_s(10) == 0


def test_requests_per_minute() -> None:
    account = Account(Tenant("a", requests_per_min=2), 0)
    account.count_request(0)
    account.count_request(0)
    with pytest.raises(Refused) as refused:
        account.count_request(10)
    assert (refused.value.refusal, refused.value.reason) == (Refusal.REQUESTS, ErrorReason.RATE_LIMITED)
    assert refused.value.retry_after_s == pytest.approx(20)
    account.count_request(30)


def test_tokens_per_minute_and_what_is_given_back() -> None:
    account = Account(Tenant("a", tokens_per_min=100), 0)
    account.charge(80, 0, NOON)
    with pytest.raises(Refused) as refused:
        account.charge(50, 0, NOON)
    assert refused.value.retry_after_s == pytest.approx(18)
    account.give_back(30, 0, NOON)
    account.charge(50, 0, NOON)
    assert [(one.kind, one.left) for one in account.standings(0)] == [("tokens", 0)]


def test_a_day_begins_at_midnight() -> None:
    account = Account(Tenant("a", tokens_per_day=100), 0)
    account.charge(60, 0, NOON)
    with pytest.raises(Refused) as refused:
        account.charge(60, 0, NOON)
    assert refused.value.reason is ErrorReason.QUOTA_EXCEEDED
    assert refused.value.retry_after_s == DAY_S / 2
    account.charge(60, 0, NOON + DAY_S / 2)
    account.give_back(60, 0, NOON)
    with pytest.raises(Refused):
        account.charge(60, 0, NOON + DAY_S / 2 + 1)


def test_what_the_day_refuses_costs_nothing_of_the_minute() -> None:
    account = Account(Tenant("a", tokens_per_min=100, tokens_per_day=100), 0)
    account.charge(60, 0, NOON)
    with pytest.raises(Refused):
        account.charge(41, 60, NOON)
    assert next(account.standings(60)).left == 100


@pytest.mark.parametrize("tenant", [Tenant("a", tokens_per_min=10), Tenant("a", tokens_per_day=10)])
def test_what_is_too_much_for_ever_is_refused_for_good(tenant: Tenant) -> None:
    with pytest.raises(TandemError) as refused:
        Account(tenant, 0).charge(11, 0, NOON)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [
        (Priority.NORMAL, None, Priority.NORMAL),
        (Priority.NORMAL, Priority.HIGH, Priority.NORMAL),
        (Priority.NORMAL, Priority.LOW, Priority.LOW),
        (Priority.HIGH, Priority.NORMAL, Priority.NORMAL),
        (Priority.HIGH, None, Priority.HIGH),
        (Priority.LOW, Priority.HIGH, Priority.LOW),
    ],
)
def test_a_request_may_ask_for_its_tenants_class_at_most(
    own: Priority, asked: Priority | None, given: Priority
) -> None:
    assert Tenant("a", priority=own).class_of(asked) is given
