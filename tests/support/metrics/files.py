"""The expressions of deploy/: alerts, and panels of the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from tests.conftest import ROOT

DEPLOY: Final = ROOT / "deploy"
PROMETHEUS: Final = DEPLOY / "prometheus" / "prometheus.yml"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "tandem.json"
VARIABLES: Final = {"$__rate_interval": "5m", "$__range": "1h"}
"""What Grafana fills in."""


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    document = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Every panel that shows something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str, list[str]]]:
    """Where it stands, the expression, and the labels that its texts name."""
    for rule in alerts():
        texts = " ".join(rule["annotations"].values())
        yield rule["alert"], rule["expr"], re.findall(r"\$labels\.(\w+)", texts)
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression, re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))


def jobs() -> dict[str, list[str]]:
    """Names to look up in the DNS, by job."""
    document = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))
    return {
        config["job_name"]: [name for found in config["dns_sd_configs"] for name in found["names"]]
        for config in document["scrape_configs"]
    }
