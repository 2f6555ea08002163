"""The examples of docs/planner.md: of metrics, labels, settings and services that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tandem.cli.planner.hook import variables
from tandem.core.ids import Role
from tandem.core.planner.advice import Advice, Bound, Change
from tests.conftest import ROOT
from tests.support.metrics import promql
from tests.support.settings import environment
from tools import metrics_doc

TEXT = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
VARIABLES = set(variables(Advice(Change.KEEP, ""), {}, None))
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


def test_the_command_of_the_planner_names_variables_that_there_are() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith('    tandem planner --apply "sh')]
    shell, option, script = shlex.split(shlex.split(line)[-1])
    assert (shell, option) == ("sh", "-c")
    assert set(re.findall(r"\$(\w+)", script)) <= VARIABLES


CHANGES = (
    # Profile, worker that was drained, unified workers; what docker is told to do.
    ("", "decode-12ab", 0, ["stop 12ab", "rm 12ab", "--scale prefill=2 --scale decode=1 prefill decode"]),
    ("mock", "", 0, ["--scale prefill-mock=2 --scale decode-mock=1 prefill-mock decode-mock"]),
    ("", "", 3, ["--scale prefill=2 --scale decode=1 --scale unified=3 prefill decode unified"]),
)


@pytest.mark.parametrize(("profile", "worker", "unified", "told"), CHANGES)
def test_the_script_for_compose_ends_who_was_drained_and_names_every_service(
    tmp_path: Path, profile: str, worker: str, unified: int, told: list[str]
) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$*"\n')
    docker.chmod(0o755)
    given = {"PLANNER_WORKER": worker, "PLANNER_PREFILL": "2", "PLANNER_DECODE": "1", "PLANNER_UNIFIED": str(unified)}
    env = environment(**dict.fromkeys(VARIABLES, ""), PATH=f"{tmp_path}:{environment()['PATH']}") | given
    command = [str(ROOT / "deploy" / "scale.sh"), *filter(None, [profile])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    up = "compose up -d --no-deps --no-recreate "
    assert done.stdout.splitlines() == [*told[:-1], up + told[-1]]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert {word for word in told[-1].split() if "=" not in word and word != "--scale"} <= compose.keys()


def test_every_metric_and_bound_is_explained_and_every_variable_exists() -> None:
    named = set(re.findall(r"`(tandem_planner_\w+)", TEXT))
    assert named == {name for name in FAMILIES if name.startswith("tandem_planner_")}
    told = TEXT.partition("| `bound` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {bound.value for bound in Bound}
    assert set(re.findall(r"`(PLANNER_\w+)`", TEXT)) == VARIABLES
