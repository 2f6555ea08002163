"""A simulated run in the numbers of `tandem bench serve`, its command, and the file of costs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.cli.__main__ import app
from tandem.cli.bench_serve.document import from_json
from tandem.cli.bench_serve.numbers import Outcome, Slo, flat, parse_slo, summarize
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan, Run
from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Ask
from tandem.cli.sim_serve.model_file import SCHEMA, CostModel, read_model, to_json
from tandem.cli.sim_serve.progress import Teller
from tandem.cli.sim_serve.report import summary_of
from tandem.core.errors import ErrorReason, TandemError


def some_run() -> Run:
    """With a queue, and two answers of one token."""
    asks = [Ask(0.002 * number, ((number, 200 + 50 * (number % 5)),), 1 + number % 7) for number in range(20)]
    return Cluster(ClusterPlan(link=LinkCosts(1.0))).run(asks)


def outcomes_of(run: Run) -> list[Outcome]:
    """As a client would have seen it; gaps other than the longest are not known."""
    return [
        Outcome(at, at, at + e2e, new, "", ttft * 1000, (gap * 1000,), prompt, new, cached)
        for at, ttft, e2e, gap, prompt, new, cached in zip(
            run.at_s,
            run.ttft_s,
            run.e2e_s,
            run.longest_gap_s,
            run.prompt_tokens,
            run.new_tokens,
            run.cached_tokens,
            strict=True,
        )
    ]


def test_the_definitions_are_those_of_the_load_generator() -> None:
    run, slo = some_run(), parse_slo("ttft=20ms,itl=30ms,e2e=60ms")
    ours, theirs = flat(summary_of(run, slo)), flat(summarize(outcomes_of(run), slo))
    assert 0 < ours["slo_share"] < 1
    names = [name for name in theirs if not name.startswith(("itl_ms", "late_ms"))]
    assert {name: ours[name] for name in names} == {name: pytest.approx(theirs[name], rel=1e-9) for name in names}


def test_the_command_writes_what_compare_reads(tmp_path: Path) -> None:
    shape = ["--workload", "chat", "--requests", "200", "--rate", "50", "--slo", "ttft=1s"]
    files = []
    for policy in ("least_load", "prefix_hash"):
        files.append(tmp_path / f"{policy}.json")
        options = [*shape, "--prefill", "3", "--decode", "3", "--prefill-policy", policy, "--out", str(files[-1])]
        said = CliRunner().invoke(app, ["sim", "serve", *options])
        assert said.exit_code == 0, said.output
        assert "200 requests in" in said.output
    result = from_json(files[0].read_text(), "a")
    assert result.summaries[0]["answered"] == 200
    assert len(result.requests[0]["ttft_ms"]) == 200
    assert result.requests[0]["at_s"] == sorted(result.requests[0]["at_s"])
    compared = CliRunner().invoke(app, ["bench", "compare", *map(str, files), "--json"])
    assert compared.exit_code == 0, compared.output
    assert "ttft_ms.p50" in json.loads(compared.output)["numbers"]


def test_a_cost_file_is_what_was_written_and_what_it_leaves_out_is_as_by_default(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    shape = WorkerShape(9, 10, 11, 12, 13, 14, 15)
    model = CostModel(
        EngineCosts(1, 2, 3, 4, 5, 6), LinkCosts(7, 8, 9), shape, "measured", GatewayCosts(16, (-17, 18.5))
    )
    path.write_text(to_json(model))
    assert read_model(path) == model
    path.write_text(json.dumps({"schema": SCHEMA, "engine": {"step_us": 7}}))
    assert read_model(path) == CostModel(EngineCosts(step_us=7), source="costs.json")


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        ({}, "schema", SCHEMA),
        ({"schema": SCHEMA, "gpu": {}}, "gpu", "engine, gateway, link, schema, shape, source"),
        ({"schema": SCHEMA, "engine": 3}, "engine", "is no object"),
        ({"schema": SCHEMA, "engine": {"steps": 3}}, "engine", "step_us_per_sequence"),
        ({"schema": SCHEMA, "engine": {"step_us": -1}}, "engine.step_us", "at least 0"),
        ({"schema": SCHEMA, "link": {"gbytes_per_s": 0}}, "link.gbytes_per_s", "above 0"),
        ({"schema": SCHEMA, "shape": {"max_running": 1.5}}, "shape.max_running", "a whole number, above 0"),
        ({"schema": SCHEMA, "gateway": {"gap_us": [1, "2"]}}, "gateway.gap_us", "a list of numbers"),
        ({"schema": SCHEMA, "gateway": {"gap_us": 1}}, "gateway.gap_us", "a list of numbers"),
        ({"schema": SCHEMA, "shape": {"max_running": True}}, "shape.max_running", "a whole number"),
    ],
)
def test_a_bad_cost_file_names_the_field_and_what_is_allowed(
    tmp_path: Path, document: object, field: str, says: str
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(document))
    with pytest.raises(TandemError) as refused:
        read_model(path)
    assert (refused.value.reason, refused.value.field) == (ErrorReason.INVALID_ARGUMENT, field)
    assert says in refused.value.message


def test_clients_see_gaps_that_are_not_as_even_as_steps() -> None:
    gaps = Gaps()
    gaps.add(0.040, 1001)
    gaps.add(0.080, 1000)
    seen = gaps.spread([-0.010, 0, 0, 0, 0.020])
    assert seen.count == 2001
    assert seen.mean_s == pytest.approx(0.002 + gaps.mean_s, rel=0.01)
    found = [seen.quantile_s(share) for share in (0.05, 0.2, 0.45, 0.55, 0.7, 0.95)]
    assert found == pytest.approx([0.030, 0.040, 0.060, 0.070, 0.080, 0.100], rel=0.02)
    assert gaps.spread(()) is gaps


def test_the_report_has_the_gaps_that_clients_see() -> None:
    asks = [Ask(0.0, ((1, 100),), 50)]
    even, uneven = (
        summary_of(Cluster(ClusterPlan(gateway=GatewayCosts(0, gap_us))).run(asks), Slo()).itl_ms
        for gap_us in ((), (-1000, 1000))
    )
    assert even is not None
    assert uneven is not None
    assert uneven.p90 - even.p90 == pytest.approx(1, rel=0.05)
    assert uneven.mean == pytest.approx(even.mean, rel=0.01)


def test_a_long_run_says_how_far_it_is_and_a_first_sigint_ends_it_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tandem.cli.sim_serve.progress.EVERY", 10)
    asks = [Ask(0.01 * number, ((number, 20),), 2) for number in range(100)]

    def interrupted() -> Iterator[Ask]:
        for number, ask in enumerate(asks):
            if number == 25:
                signal.raise_signal(signal.SIGINT)
            yield ask

    before = signal.getsignal(signal.SIGINT)
    run = Cluster(ClusterPlan()).run(Teller(100, aloud=True).each(interrupted()))
    assert run.totals.answered == 25
    assert signal.getsignal(signal.SIGINT) is before
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["10", "20"]
    assert "of 100 requests asked" in lines[0]
