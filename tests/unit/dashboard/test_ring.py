"""What the dashboard remembers: bounded, right at its edges, and the same whatever the load."""

from __future__ import annotations

import math
import random

import pytest

from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.core.ids import RequestId
from tandem.gateway.dashboard.recorder import ERRORS_KEPT, Recorder
from tandem.gateway.dashboard.ring import BUCKET_S, BUCKETS, Ring, series
from tandem.gateway.dashboard.sketch import GROWTH, MAX_S, MIN_S, Sketch
from tandem.gateway.gateway_metrics import GatewayMetrics, Stopwatch
from tandem.gateway.mailbox import News
from tandem.rpc.metrics import Metrics
from tests.support.gateway.clock import HandClock
from tests.support.gateway.doubles import tokens

LOADED = "/v1/completions"


def recorder(clock: HandClock) -> Recorder:
    """One that counts one endpoint."""
    return Recorder(clock, frozenset({LOADED}))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 1.0])
def test_a_quantile_is_that_of_the_sorted_values_but_for_half_a_step(share: float) -> None:
    dice = random.Random(1)
    values = sorted(dice.lognormvariate(-3, 1.5) for _ in range(5000))
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    (found,) = sketch.quantiles([share])
    exact = values[math.ceil(share * len(values)) - 1]
    assert found is not None
    assert exact / GROWTH < found < exact * GROWTH


def test_a_sketch_stays_small_whatever_it_is_given() -> None:
    sketch, dice = Sketch(), random.Random(2)
    for _ in range(50_000):
        sketch.add(10 ** dice.uniform(-9, 9))
    sketch.add(0.0)
    sketch.add(-1.0)
    assert sketch.counters <= math.log(MAX_S / MIN_S, GROWTH) + 3
    low, high = sketch.quantiles([0.0, 1.0])
    assert low == pytest.approx(MIN_S, rel=GROWTH - 1)
    assert high == pytest.approx(MAX_S, rel=GROWTH - 1)


def test_an_empty_sketch_knows_nothing() -> None:
    assert Sketch().quantiles([0.5, 0.95]) == [None, None]


def test_a_bucket_is_used_again_only_when_its_time_is_over() -> None:
    ring = Ring(0)
    ring.at(3.0).requests += 1
    ring.at(4.999).requests += 1
    ring.at(5.0).requests += 10
    last = ring.last(9.0)
    assert [one.requests for one in last[-2:]] == [2, 10]
    round_trip = BUCKETS * BUCKET_S
    assert ring.at(3.0 + round_trip).requests == 0
    assert [one.requests for one in ring.last(3.0 + round_trip)[:1]] == [10]


def test_a_ring_holds_no_more_than_its_buckets_however_long_it_runs() -> None:
    ring = Ring(0)
    for second in range(4 * BUCKETS * BUCKET_S):
        ring.at(second).tokens += 1
    last = ring.last(second)
    assert len(last) == BUCKETS
    assert [one.tokens for one in last] == [BUCKET_S] * BUCKETS


def test_nothing_is_told_of_a_time_before_it_began_and_zero_of_a_quiet_one() -> None:
    ring = Ring(began=1000.0)
    points = series(ring.last(1012.0), 1012.0)
    assert points.requests_per_s == [None] * (BUCKETS - 3) + [0.0] * 3
    assert points.ttft_p50_ms == [None] * BUCKETS


@pytest.mark.parametrize(("into", "rate"), [(0.1, 6.0), (2.0, 3.0), (4.0, 1.5)])
def test_the_first_bucket_counts_for_the_time_it_has_run(into: float, rate: float) -> None:
    ring = Ring(100.0)
    ring.at(100.0).requests = 6
    assert series(ring.last(100.0 + into), 100.0 + into).requests_per_s[-1] == rate


@pytest.mark.parametrize("into", [0.0, 0.1, 2.5, 4.9])
def test_a_steady_rate_is_steady_wherever_a_bucket_is_cut(into: float) -> None:
    ring = Ring(0)
    for tenth in range(int((100.0 + into) * 10)):
        ring.at(tenth / 10).requests += 1
    rates = series(ring.last(100.0 + into), 100.0 + into).requests_per_s
    assert [rate for rate in rates if rate is not None] == pytest.approx([10.0] * 21, abs=0.05)


def test_a_stopwatch_feeds_the_ring() -> None:
    clock = HandClock()
    seen = recorder(clock)
    watch = Stopwatch(GatewayMetrics(Metrics(), seen), LOADED)
    watch.prepared("tiny", 3)
    watch.saw([News(0, tokens(1, 5, 6)), News(1, tokens(2, 7))])
    watch.saw([News(0, tokens(1, 8))])
    # The stopwatch has its own clock, so all that is sure is that there is one bucket, or two.
    held = [bucket for bucket in seen.ring._buckets if bucket is not None]
    assert sum(bucket.tokens for bucket in held) == 4
    assert sum(bucket.ttft.total for bucket in held) == 1
    assert sum(bucket.itl.total for bucket in held) == 1


def test_requests_and_errors_of_other_endpoints_do_not_count() -> None:
    clock = HandClock()
    seen = recorder(clock)
    metrics = GatewayMetrics(Metrics(), seen)
    for endpoint in (LOADED, "/metrics", "/ready"):
        metrics.count_error(endpoint, ErrorReason.NO_WORKER, RequestId("one"))
        metrics.count_answer(endpoint, 503)
    metrics.count_error(LOADED, ErrorReason.CANCELLED, RequestId("gone"))
    bucket = seen.ring.at(clock.monotonic())
    assert (bucket.requests, bucket.errors) == (1, 1)
    assert [error.request_id for error in seen.errors] == ["one"]


def test_the_last_errors_are_kept_and_no_more_with_the_catalogues_text() -> None:
    clock = HandClock()
    seen = recorder(clock)
    for number in range(3 * ERRORS_KEPT):
        seen.saw_error(LOADED, ErrorReason.PEER_LOST, RequestId(str(number)))
    assert [error.request_id for error in seen.errors] == [str(n) for n in range(2 * ERRORS_KEPT, 3 * ERRORS_KEPT)]
    assert {error.text for error in seen.errors} == {CATALOGUE[ErrorReason.PEER_LOST].public_text}
