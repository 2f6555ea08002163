"""Backoff, trace context, addresses, the server's table."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.credentials import is_local
from tandem.rpc.server import TRANSITIONS, ServerState
from tandem.rpc.telemetry import TraceParent, mint, parse

POLICY = BackoffPolicy(initial_ms=100, max_ms=1000, factor=2, jitter=0.5)


def test_waits_double_up_to_the_maximum():
    assert [POLICY.delay_ms(attempt, 0.0) for attempt in range(6)] == [100, 200, 400, 800, 1000, 1000]


@given(st.integers(0, 10**9), st.floats(0, 1, exclude_max=True))
def test_waits_are_bounded(attempt, unit):
    assert 50 <= POLICY.delay_ms(attempt, unit) <= 1000


def test_a_success_starts_the_waits_over():
    backoff = Backoff(BackoffPolicy(initial_ms=100, max_ms=1000, jitter=0), random.Random(1))
    assert [backoff.next_ms(), backoff.next_ms()] == [100, 200]
    backoff.reset()
    assert backoff.next_ms() == 100


GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_comes_back_as_it_was():
    assert str(parse(GOOD)) == GOOD
    assert str(parse(GOOD[:-2] + "00")) == GOOD[:-2] + "00"


def test_a_later_version_may_have_more_fields():
    assert parse("01" + GOOD[2:] + "-more") == parse(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        GOOD + "-more",
        "ff" + GOOD[2:],
        GOOD.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent(text):
    assert parse(text) is None


@given(st.integers(0, 2**128), st.integers(0, 2**64))
def test_minted_ones_are_valid_and_children_keep_the_trace(trace_bits, span_bits):
    parent = mint(trace_bits, span_bits)
    assert parse(str(parent)) == parent
    child = parent.child(span_bits + 1)
    assert isinstance(child, TraceParent)
    assert child.trace_id == parent.trace_id
    assert parse(str(child)) == child


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:0", True),
        ("127.8.8.8:1", True),
        ("[::1]:5", True),
        ("localhost:1", True),
        ("unix:/a/b", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.com:1", False),
        ("example.com:1", False),
        ("", False),
    ],
)
def test_what_only_this_machine_can_reach(address, local):
    assert is_local(address) is local


def test_the_server_table_is_total_and_ends():
    assert set(TRANSITIONS) == set(ServerState)
    assert TRANSITIONS[ServerState.STOPPED] == frozenset()
    assert all(ServerState.STARTING not in after for after in TRANSITIONS.values())
