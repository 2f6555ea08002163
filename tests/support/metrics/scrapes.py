"""What the services of a system tell Prometheus."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.metrics.promql import OF_PROMETHEUS, Series
from tests.support.system.system import System
from tools import metrics_doc


@dataclass(frozen=True, order=True)
class Entry:
    """One metric of one service."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    """In order of name."""


async def scrape(system: System) -> dict[str, str]:
    """The text of every process, by its name. Fails on anything but 200."""
    found = {}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        for row in system.state.processes:
            response = await client.get(f"http://{row.metrics}/metrics")
            assert response.status_code == 200, row.name
            found[row.name] = response.text
    return found


def service_of(process: str) -> str:
    """`decode` of `decode-0`."""
    return re.sub(r"-\d+$", "", process)


def scraped(texts: dict[str, str]) -> set[Entry]:
    """Every metric that has a series."""
    found = set()
    for process, text in texts.items():
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            for sample in family.samples:
                labels = tuple(sorted(label for label in sample.labels if label != "le"))
                found.add(Entry(service_of(process), name, family.type, labels))
    return found


def documented() -> set[Entry]:
    """Every metric of docs/metrics.md, of each service whose section it stands in."""
    services = {title: names for names, title in metrics_doc.SECTIONS.items()}
    found, title = set(), ""
    for line in metrics_doc.DOCUMENT.read_text(encoding="utf-8").splitlines():
        title = line.removeprefix("## ") if line.startswith("## ") else title
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if title in services and len(cells) == 5 and cells[0].startswith("`"):
            labels = tuple(sorted(re.findall(r"`(\w+)`", cells[2])))
            found |= {Entry(service, cells[0].strip("`"), cells[1], labels) for service in services[title]}
    return found


def series(texts: dict[str, str]) -> list[Series]:
    """Every series as Prometheus has it, with the labels of its target."""
    found = []
    for process, text in texts.items():
        target = {"job": f"tandem-{service_of(process)}", "instance": process}
        found += [Series(name, target) for name in OF_PROMETHEUS]
        for family in text_string_to_metric_families(text):
            found += [Series(sample.name, {**sample.labels, **target}) for sample in family.samples]
    return found
