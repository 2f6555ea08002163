"""The examples of docs/planner.md: of metrics, labels, settings and services that exist."""

from __future__ import annotations

import re
import shlex

import yaml

from tandem.cli.planner.hook import variables
from tandem.core.ids import Role
from tandem.core.planner.advice import Advice, Bound, Change
from tests.conftest import ROOT
from tests.support.metrics import promql
from tools import metrics_doc

TEXT = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
FAMILIES = {family.exposed: family for family in metrics_doc.families()["planner"]}


def blocks() -> list[dict]:
    """Every example in YAML."""
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def test_the_autoscaler_asks_for_a_metric_of_the_planner_by_a_label_that_it_has() -> None:
    (hpa,) = [block for block in blocks() if block.get("kind") == "HorizontalPodAutoscaler"]
    assert hpa["apiVersion"] == "autoscaling/v2"
    spec = hpa["spec"]
    assert spec.keys() == {"scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior"}
    assert spec["scaleTargetRef"].keys() == {"apiVersion", "kind", "name"}
    assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
    assert {name: one.keys() for name, one in spec["behavior"].items()} == {
        name: {"stabilizationWindowSeconds"} for name in ("scaleUp", "scaleDown")
    }
    (metric,) = spec["metrics"]
    assert (metric["type"], metric.keys()) == ("External", {"type", "external"})
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    asked = metric["external"]["metric"]
    labels = asked["selector"]["matchLabels"]
    assert set(labels) == set(FAMILIES[asked["name"]].labels)
    assert Role(labels["role"])


def test_the_adapter_makes_that_metric_of_a_query_that_prometheus_reads() -> None:
    (rule,) = [rule for block in blocks() for rule in block.get("externalRules", ())]
    assert rule.keys() == {"seriesQuery", "resources", "name", "metricsQuery"}
    assert rule["seriesQuery"] == rule["name"]["matches"] in FAMILIES
    query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"])
    question = promql.read(query.replace("<<.LabelMatchers>>", 'role="prefill"'))
    assert question.grouped == set(FAMILIES[rule["seriesQuery"]].labels)


def test_prometheus_finds_the_planner_where_the_example_lets_it_listen() -> None:
    (job,) = [job for block in blocks() for job in block.get("scrape_configs", ())]
    (target,) = job["static_configs"][0]["targets"]
    assert f"--metrics 0.0.0.0:{target.rpartition(':')[2]}\n" in TEXT


def test_commands_of_the_planner_name_variables_and_services_that_there_are() -> None:
    there = set(variables(Advice(Change.KEEP, ""), {}, None))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    commands = [
        shlex.split(line)[-1] for line in TEXT.splitlines() if line.startswith('    tandem planner --apply "sh')
    ]
    assert len(commands) == 2
    for command in commands:
        shell, option, script = shlex.split(command)
        assert (shell, option) == ("sh", "-c")
        assert set(re.findall(r"\$(\w+)", script)) <= there
        for service, variable in re.findall(r"--scale (\w+)=\$PLANNER_(\w+)", script):
            assert service in compose
            assert variable == service.upper()


def test_every_metric_and_bound_is_explained_and_every_variable_exists() -> None:
    named = set(re.findall(r"`(tandem_planner_\w+)", TEXT))
    assert named == {name for name in FAMILIES if name.startswith("tandem_planner_")}
    told = TEXT.partition("| `bound` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {bound.value for bound in Bound}
    assert set(re.findall(r"`(PLANNER_\w+)`", TEXT)) == set(variables(Advice(Change.KEEP, ""), {}, None))
