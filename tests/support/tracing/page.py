"""What docs/tracing.md says of spans and of their attributes, and whether a trace is as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tandem.cli.trace import Trace
from tandem.core.room.timeline import Step

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "tracing.md"
REQUEST: Final = "POST <path>"
CODE: Final = re.compile(r"`([^`]+)`")
RANKS: Final = frozenset(step.value for step in Step if step is not Step.LANDED)
KINDS: Final = {"request": {REQUEST}, "legs": {"prefill", "decode"}, "rank's spans": RANKS}
"""What the table of attributes calls them, where it is not their name."""
ANYWHERE: Final = "whatever failed"


def spans() -> set[str]:
    """Names of spans."""
    return {name for cells in _table("Spans") for name in CODE.findall(cells[0])}


def attributes() -> dict[str, set[str]]:
    """Of each attribute, the spans that it is on; all of them if it is on whatever failed."""
    found: dict[str, set[str]] = {}
    for names, on, *_ in _table("Attributes"):
        first, *more = CODE.findall(names)
        prefix = ".".join(first.split(".")[:2])
        where = spans() if on == ANYWHERE else set().union(*(KINDS.get(kind, {kind}) for kind in on.split(", ")))
        for name in (first, *more):
            found[prefix + name if name.startswith(".") else name] = where
    return found


def check_documented(trace: Trace) -> None:
    """Fails if a span or an attribute is not where the page has it."""
    known, on = spans(), attributes()
    for span in trace.spans:
        name = REQUEST if span.name.startswith("POST ") else span.name
        assert name in known, name
        unknown = [attribute for attribute in span.attributes if name not in on.get(attribute, ())]
        assert not unknown, (name, unknown)


def _table(title: str) -> Iterator[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]
