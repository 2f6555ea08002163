"""What a run's outcomes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.numbers import DROPPED, Outcome, Slo, flat, parse_slo, spread, summarize
from tandem.core.errors import TandemError


def answer(
    at_s: float = 0.0, *, late_s: float = 0.0, ttft_ms: float = 100.0, gaps_ms: tuple[float, ...] = (10, 30)
) -> Outcome:
    sent = at_s + late_s
    tokens = len(gaps_ms) + 1
    ended = sent + (ttft_ms + sum(gaps_ms)) / 1000
    return Outcome(at_s, sent, ended, tokens, "", ttft_ms, gaps_ms, prompt_tokens=7, new_tokens=tokens, cached_tokens=2)


def failure(reason: str, at_s: float = 0.0) -> Outcome:
    return Outcome(at_s, at_s, at_s, 3, reason)


def test_known_values() -> None:
    run = [
        answer(),
        answer(1.0, late_s=0.5, ttft_ms=300, gaps_ms=(20,)),
        failure("http_503", 1.5),
        failure(DROPPED, 1.6),
    ]
    found = summarize(run, Slo({"ttft": 200.0}))
    assert (found.planned, found.answered, found.dropped, found.errors) == (4, 2, 1, {"http_503": 1})
    # The last answer is sent at 1.5 s, half a second late, and takes 320 ms.
    assert found.duration_s == pytest.approx(1.82)
    assert found.requests_per_s == pytest.approx(2 / 1.82)
    assert found.output_tokens_per_s == pytest.approx(5 / 1.82)
    assert found.prompt_tokens_per_s == pytest.approx(14 / 1.82)
    assert found.cached_share == pytest.approx(4 / 14)
    assert found.goodput_per_s == pytest.approx(1 / 1.82)
    assert found.slo_share == pytest.approx(1 / 4)
    assert found.mean_in_flight == pytest.approx((0.14 + 0.32) / 1.82)
    assert found.ttft_ms is not None
    assert found.ttft_ms.mean == pytest.approx(200)
    assert found.tpot_ms is not None
    assert found.tpot_ms.mean == pytest.approx(20)
    assert found.itl_ms is not None
    assert found.itl_ms.mean == pytest.approx(20)
    assert found.e2e_ms is not None
    assert found.e2e_ms.p50 == pytest.approx(230)
    assert found.late_ms is not None
    assert found.late_ms.p99 == pytest.approx(np.percentile([0, 500, 0], 99))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert [found.p50, found.p90, found.p99] == pytest.approx(list(np.percentile(values, [50, 90, 99])))
    assert found.mean == pytest.approx(float(np.mean(values)))


def test_a_run_without_answers_has_no_latencies() -> None:
    found = summarize([failure("connect"), failure("connect")], Slo())
    assert found.errors == {"connect": 2}
    assert found.ttft_ms is None
    assert found.slo_share == 0
    assert "ttft_ms.p50" not in flat(found)
    assert flat(found)["late_ms.p50"] == 0


def test_one_token_has_no_tpot_and_short_answers_are_counted() -> None:
    short = Outcome(0, 0, 0.1, asked_tokens=9, ttft_ms=100, new_tokens=1)
    found = summarize([short], Slo({"tpot": 1.0}))
    assert found.tpot_ms is None
    assert found.short == 1
    assert found.slo_share == 1, "it keeps any limit on what it does not have"


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, True),
        ({"ttft": 100.0, "itl": 30.0, "tpot": 20.0, "e2e": 140.1}, True),
        ({"ttft": 99.0}, False),
        ({"itl": 29.0}, False),
        ({"tpot": 19.0}, False),
        ({"e2e": 139.0}, False),
    ],
)
def test_each_limit_counts(limits: dict[str, float], kept: bool) -> None:
    assert Slo(limits).kept_by(answer()) is kept
    assert not Slo(limits).kept_by(failure("timeout"))


def test_an_slo_is_read() -> None:
    assert parse_slo("ttft=1s, itl=50ms").limits_ms == {"ttft": 1000.0, "itl": 50.0}
    assert parse_slo("tpot=2.5ms,e2e=10s").limits_ms == {"tpot": 2.5, "e2e": 10_000.0}
    assert parse_slo("").limits_ms == {}


@pytest.mark.parametrize("text", ["ttft", "ttft=1", "ttft=1s,ttft=2s", "speed=1s", "ttft=-1s", "itl=1min"])
def test_a_bad_slo_is_refused(text: str) -> None:
    with pytest.raises(TandemError, match="--slo"):
        parse_slo(text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=1, max_size=40))
def test_every_planned_request_is_accounted_for(rows: list[tuple[float, bool]]) -> None:
    run = [answer(at) if good else failure("timeout" if at < 50 else DROPPED, at) for at, good in rows]
    found = summarize(run, Slo())
    assert found.answered + found.dropped + sum(found.errors.values()) == found.planned == len(rows)
