"""Alerts, dashboard and Prometheus' settings: well formed, and of metrics that exist."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml

from tests.conftest import ROOT
from tests.support.metrics import files, promql
from tests.support.metrics.promql import Series
from tools import metrics_doc

HEALTHY_RULE = {"alert", "expr", "for", "labels", "annotations"}
COLUMNS = 24


def known() -> dict[str, set[str]]:
    """Labels by the name of a series, of all services."""
    found = {name: set[str]() for name in promql.OF_PROMETHEUS}
    for family in metrics_doc.holders(metrics_doc.families()):
        for name in metrics_doc.series(family):
            found[name] = {*family.labels, *(["le"] if name.endswith("_bucket") else [])}
    return found


def name_of(value: object) -> str:
    """In the name of a test."""
    return value[:40] if isinstance(value, str) else ""


@pytest.mark.parametrize(("where", "text", "named"), files.expressions(), ids=name_of)
def test_an_expression_asks_for_what_exists(where: str, text: str, named: list[str]) -> None:
    labels_of, question = known(), promql.read(text)
    assert question.selectors, where
    labels = set(promql.OF_THE_TARGET)
    for selector in question.selectors:
        assert selector.name in labels_of, f"{where} asks for {selector.name}"
        labels |= labels_of[selector.name]
        asked = {label for label, _, _ in selector.matchers}
        assert asked <= labels_of[selector.name] | promql.OF_THE_TARGET, f"{where}: {selector}"
    assert question.grouped <= labels, where
    assert set(named) <= labels, f"{where} names a label that is not there"


def test_every_metric_but_these_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = {selector.name for _, text, _ in files.expressions() for selector in promql.read(text).selectors}
    unseen = [
        family.name
        for family in metrics_doc.holders(metrics_doc.families())
        if not asked & set(metrics_doc.series(family))
    ]
    assert sorted(unseen) == [
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
        "tandem_bootstrap_watchers",
        "tandem_rank_open_fds",
        "tandem_worker_registrations",
    ]


@pytest.mark.parametrize("rule", files.alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict) -> None:
    assert rule.keys() <= HEALTHY_RULE
    assert re.fullmatch("Tandem[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "action"}
    assert all(len(text) > 20 for text in rule["annotations"].values())
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


@pytest.mark.parametrize("name", ["TandemNoWorker", "TandemNoSession"])
def test_roles_that_a_cluster_need_not_have_are_not_missed(name: str) -> None:
    """A pair is missed only where no unified worker serves, and a unified worker never."""
    (rule,) = [rule for rule in files.alerts() if rule["alert"] == name]
    selectors = promql.read(rule["expr"]).selectors
    asked = [{label: (how, value) for label, how, value in one.matchers} for one in selectors]
    assert [one["role"] for one in asked] == [("NotEqual", "unified"), ("Equal", "unified")]
    assert " and on (" in rule["expr"]


def test_alerts_have_names_of_their_own() -> None:
    names = Counter(rule["alert"] for rule in files.alerts())
    assert max(names.values()) == 1


def test_alerts_and_settings_name_metrics_and_files_that_exist() -> None:
    labels_of = known()
    for rule in files.alerts():
        for name in re.findall(r"\b(?:tandem|gen_ai)_[a-z_]+\b", rule["annotations"]["action"]):
            assert any(series == name or series.startswith(f"{name}_") for series in labels_of), name
        for page in re.findall(r"docs/[\w.]+\.md", rule["annotations"]["action"]):
            assert (ROOT / page).exists()


def test_panels_do_not_overlap_and_each_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    panels = files.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
    titles = Counter(panel["title"] for panel in files.panels())
    assert max(titles.values()) == 1
    assert all(panel["description"] and panel["targets"] for panel in files.panels())


def test_prometheus_looks_for_every_service_of_the_compose_file_at_the_port_that_it_listens_on() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    settings = yaml.safe_load(files.PROMETHEUS.read_text(encoding="utf-8"))
    ours = {"gateway", "bootstrap", "prefill", "decode", "prefill-mock", "decode-mock", "unified", "unified-mock"}
    assert {name for names in files.jobs().values() for name in names} == ours
    for config in settings["scrape_configs"]:
        kind = config["job_name"].removeprefix("tandem-")
        for found in config["dns_sd_configs"]:
            for name in found["names"]:
                assert _metrics_port(kind, compose[name]) == found["port"], name


def _metrics_port(kind: str, service: dict) -> int:
    """Where a service answers Prometheus, on the network of the services only."""
    if kind == "gateway":
        (published,) = service["ports"]
        return int(published.rpartition(":")[2])
    assert "ports" not in service
    address = service["environment"][f"TANDEM_{kind.upper()}_METRICS_ADDRESS"]
    assert address.startswith("0.0.0.0:")
    return int(address.rpartition(":")[2])


# ---------------------------------------------------------------- the reading itself


THERE = [Series("a_total", {"code": "503", "job": "x"}), Series("b", {"role": "decode"})]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('sum by (code) (rate(a_total{code=~"5.."}[5m])) > 0', []),
        ('rate(a_total{code=~"5"}[5m])', ["no series for a_total"]),
        ('a_total{code!="503"}', ["no series for a_total"]),
        ('b{role="decode"} and on (job) a_total{code!~"4.."}', []),
        ("b and on (pool) a_total", ["nothing has the label pool"]),
        ("sum by (rool) (b)", ["nothing has the label rool"]),
        ("1 - c / b", ["no series for c"]),
    ],
)
def test_what_is_not_there_is_found(text: str, wrong: list[str]) -> None:
    found = promql.complaints(promql.read(text), THERE)
    assert len(found) == len(wrong), found
    assert all(complaint.startswith(start) for complaint, start in zip(found, wrong, strict=True))


@pytest.mark.parametrize("text", ["sum(", "rate(a_total)", "sum by le (a)", "histogram_quantile(a)"])
def test_what_is_no_promql_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        promql.read(text)
