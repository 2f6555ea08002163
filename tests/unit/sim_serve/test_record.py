"""A run of any length is remembered in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.cli.bench_serve.numbers import parse_slo
from tandem.cli.sim_serve import record
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan
from tandem.cli.sim_serve.jobs import Ask, Job
from tandem.cli.sim_serve.record import Record
from tandem.cli.sim_serve.report import summary_of


def job(number: int) -> Job:
    """The n-th came n seconds after the first, and took n seconds."""
    ask = Ask(5.0 + number, ((number, number + 1),), 2)
    return Job(ask, number + 1, first_token_s=ask.at_s, ended_s=ask.at_s + number)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 1023, 1024])
def test_rows_are_evenly_some_and_totals_are_of_all(count: int) -> None:
    kept = Record(most_rows=8)
    for number in range(count):
        kept.add(job(number))
    totals, (at_s, *_) = kept.totals, kept.times
    assert {len(column) for column in (*kept.times, *kept.counts)} == {len(at_s)}
    assert min(count, 4) <= len(at_s) <= 7
    assert len(set(np.diff(at_s))) <= 1, "evenly"
    assert [tokens + 4 for tokens in kept.counts[0]] == list(at_s), "columns belong together"
    assert (totals.answered, totals.prompt_tokens, totals.new_tokens) == (count, count * (count + 1) // 2, 2 * count)
    assert (totals.first_s, totals.e2e_s) == (5.0 if count else 0.0, count * (count - 1) / 2)


def test_the_report_of_some_rows_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [Ask(number * 0.03, ((number, 500 + number % 7 * 500),), 3) for number in range(4000)]
    whole = summary_of(Cluster(ClusterPlan()).run(asks), parse_slo("ttft=25ms"))
    monkeypatch.setattr(record, "MOST_ROWS", 512)
    run = Cluster(ClusterPlan()).run(asks)
    some = summary_of(run, parse_slo("ttft=25ms"))
    assert len(run.at_s) < 512
    assert (some.planned, some.answered, some.requests_per_s) == (whole.planned, whole.answered, whole.requests_per_s)
    assert some.output_tokens_per_s == whole.output_tokens_per_s
    assert some.slo_share == pytest.approx(whole.slo_share, abs=0.05)
    assert whole.ttft_ms is not None
    assert some.ttft_ms is not None
    assert some.ttft_ms.mean == pytest.approx(whole.ttft_ms.mean, rel=0.05)
