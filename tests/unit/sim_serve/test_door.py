"""The gateway's admission in the simulated cluster: who is refused, for what, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.sim_serve.clients import ANYBODY, Client, read_clients, sender
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan, Run
from tandem.cli.sim_serve.costs import EngineCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.door import Doorkeeping
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.errors import TandemError
from tandem.core.fair_queue import Priority, QueueLimits
from tandem.core.tenants import Tenant

COSTS = EngineCosts(prefill_us_per_token=10, step_us=1000, step_us_per_sequence=0)
"""An answer of 101 tokens to a prompt of 1000: 0.11 s."""
NO_LINK = LinkCosts(gbytes_per_s=1e9, us_per_chunk=0)


def played(asks: list[Ask], keeping: Doorkeeping, shape: WorkerShape | None = None) -> Run:
    cluster = Cluster(ClusterPlan(costs=COSTS, link=NO_LINK, shape=shape or WorkerShape(), keeping=keeping))
    run = cluster.run(asks)
    assert cluster._door.idle
    return run


def asks_of(*clients: Client, apart_s: float = 1e-6) -> list[Ask]:
    return [Ask(apart_s * number, ((number, 1000),), 101, client=client) for number, client in enumerate(clients)]


def one_at_a_time(max_queued: int = 100) -> Doorkeeping:
    return Doorkeeping(QueueLimits(1, max_queued))


def test_who_finds_no_place_waits_and_who_finds_the_queue_full_is_refused() -> None:
    run = played(asks_of(*[ANYBODY] * 4), one_at_a_time(max_queued=2))
    assert run.refused == {"full": 1}
    assert list(run.ttft_s) == pytest.approx([0.01, 0.12, 0.23], abs=1e-4)


def test_a_higher_class_goes_first_and_takes_the_place_of_a_lower_one() -> None:
    high, low = (Client(Tenant(one.value, priority=one)) for one in (Priority.HIGH, Priority.LOW))
    run = played(asks_of(low, low, low, high), one_at_a_time(max_queued=2))
    assert run.refused == {"displaced": 1}
    assert run.at_s[1] == pytest.approx(3e-6), "the last that came is the second to be answered"


def test_a_deadline_that_comes_in_the_queue_or_at_work_is_counted_and_keeps_no_place() -> None:
    patient, hasty, slow = ANYBODY, Client(Tenant("hasty"), timeout_s=0.05), Client(Tenant("slow"), timeout_s=0.15)
    run = played(asks_of(patient, hasty, slow, patient), one_at_a_time())
    assert run.refused == {"expired": 1, "deadline_exceeded": 1}
    assert sorted(run.e2e_s) == pytest.approx([0.11, 0.33], abs=1e-3), "slow has its place and ends too late"


def test_the_estimate_refuses_what_would_come_too_late() -> None:
    hasty = Client(timeout_s=0.2)
    late = [Ask(0.6, ((99, 1000),), 101, client=hasty)]
    run = played(asks_of(*[ANYBODY] * 12) + late, one_at_a_time())
    assert run.refused == {"too_late": 1}


def test_tenants_have_what_their_accounts_allow() -> None:
    by_count = Client(Tenant("a", requests_per_min=2))
    by_tokens = Client(Tenant("b", tokens_per_min=2500))
    by_day = Client(Tenant("c", tokens_per_day=1500))
    never = Client(Tenant("d", tokens_per_min=100))
    clients = [*[by_count] * 3, *[by_tokens] * 3, *[by_day] * 2, never]
    run = played(asks_of(*clients), Doorkeeping())
    assert run.refused == {"requests": 1, "tokens": 1, "quota": 1, "invalid_argument": 1}


def test_a_refused_request_gives_its_tokens_back() -> None:
    client = Client(Tenant("a", tokens_per_min=2500))
    asks = [*asks_of(ANYBODY), *(Ask(at, ((at, 1000),), 101, client=client) for at in (0.01, 0.2, 0.4))]
    assert played(asks, one_at_a_time(max_queued=0)).refused == {"full": 1}


def test_pages_are_given_away_once_in_the_gateway_or_more_often_and_then_waited_for_at_the_worker() -> None:
    shape, asks = WorkerShape(kv_tokens=2240), asks_of(*[ANYBODY] * 4)
    once, often = (played(asks, Doorkeeping(decode_commit=commit), shape) for commit in (1.0, 0.0))
    assert list(once.ttft_s) == list(often.ttft_s)
    wasted = WorkerShape(kv_tokens=2240, page_tokens=700)
    assert max(played(asks, Doorkeeping(), wasted).ttft_s) > max(once.ttft_s), "whole pages: one at a time"


def test_weights_share_the_places() -> None:
    three, one = Client(Tenant("three", weight=3)), Client(Tenant("one"))
    run = played(asks_of(*[three, one] * 40), one_at_a_time())
    first = sorted(range(80), key=lambda n: run.at_s[n] + run.e2e_s[n])[:40]
    mine = sum(round(run.at_s[n] * 1e6) % 2 == 0 for n in first)
    assert 28 <= mine <= 32


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.5)), max_size=60), st.integers(1, 3), st.integers(0, 5))
def test_every_request_is_answered_or_refused_for_one_reason(come, places, queued) -> None:
    clients = [
        ANYBODY,
        Client(Tenant("h", priority=Priority.HIGH, max_concurrent=1), timeout_s=0.3),
        Client(Tenant("l", priority=Priority.LOW, requests_per_min=5)),
    ]
    asks = [
        Ask(at_s, ((n, 1000),), 51, client=clients[who])
        for n, (who, at_s) in enumerate(sorted(come, key=lambda c: c[1]))
    ]
    run = played(asks, Doorkeeping(QueueLimits(places, queued)))
    assert len(run.e2e_s) + sum(run.refused.values()) == len(asks)


def test_requests_are_drawn_by_the_shares_of_their_tenants() -> None:
    clients = (Client(Tenant("a"), share=3), Client(Tenant("b")))
    draw = sender(clients, 7)
    drawn = [draw().tenant.name for _ in range(4000)]
    assert Counter(drawn)["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    again = sender(clients, 7)
    assert drawn == [again().tenant.name for _ in range(4000)]


def test_a_file_of_tenants_is_read_and_a_bad_one_names_its_field(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(
        '[default]\n[tenants.a]\nkeys=["x"]\nshare=2\ntimeout_s=1.5\npriority="high"\nmax_concurrent=3\n[tenants.b]\n'
    )
    expected = Client(Tenant("a", priority=Priority.HIGH, max_concurrent=3), 2.0, 1.5)
    assert read_clients(path) == (expected, Client(Tenant("b")))
    for text, field in (
        ("", "tenants"),
        ("[tenants.a]\nshares=1", "tenants.a"),
        ("[tenants.a]\nshare=0", "tenants.a.share"),
        ('[tenants.a]\npriority="urgent"', "tenants.a.priority"),
        ("[tenants.a]\nmax_concurrent=1.5", "tenants.a.max_concurrent"),
    ):
        path.write_text(text)
        with pytest.raises(TandemError) as refused:
            read_clients(path)
        assert refused.value.field == field


def test_the_mean_wait_does_not_depend_on_where_it_is_spent() -> None:
    """A queue in the gateway in front of one place is the worker's queue in front of one place."""
    asks = [Ask(0.12 * number, ((number, 1000),), 101) for number in range(50)]
    assert np.mean(played(asks, one_at_a_time()).ttft_s) == pytest.approx(0.01)
