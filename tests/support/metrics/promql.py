"""Which series a PromQL expression asks for, and whether they are there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import promql_parser as promql

OPERATORS: Final[dict[str, Callable[[str, str], bool]]] = {
    "Equal": lambda wanted, value: value == wanted,
    "NotEqual": lambda wanted, value: value != wanted,
    "Re": lambda wanted, value: re.fullmatch(wanted, value) is not None,
    "NotRe": lambda wanted, value: re.fullmatch(wanted, value) is None,
}
OF_THE_TARGET: Final = frozenset({"job", "instance"})
"""Labels that Prometheus adds to every series."""
OF_PROMETHEUS: Final = frozenset({"up"})
"""Metrics that it makes itself, one series per target."""


@dataclass(frozen=True)
class Series:
    """One series."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Selector:
    """What an expression asks for in one place: a name and `label operator value`."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]

    def takes(self, series: Series) -> bool:
        """Whether a series is meant."""
        return series.name == self.name and all(
            OPERATORS[operator](value, series.labels.get(label, "")) for label, operator, value in self.matchers
        )


@dataclass(frozen=True)
class Question:
    """An expression."""

    text: str
    selectors: tuple[Selector, ...]
    grouped: frozenset[str]
    """Labels that it groups by, or joins on."""


def read(text: str) -> Question:
    """Parses an expression. Raises ValueError for one that is none."""
    selectors: list[Selector] = []
    grouped: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            matchers = [
                (matcher.name, str(matcher.op).rpartition(".")[2], matcher.value) for matcher in node.matchers.matchers
            ]
            assert not node.matchers.or_matchers, "never asked so far"
            selectors.append(Selector(node.name, tuple(matchers)))
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            grouped.update(node.modifier.matching.labels)

    promql.walk(promql.parse(text), visit)
    return Question(text, tuple(selectors), frozenset(grouped))


def complaints(question: Question, there: Iterable[Series]) -> list[str]:
    """What an expression asks for that is not there: series, and labels to group by."""
    known = list(there)
    found = []
    labels = set(OF_THE_TARGET)
    for selector in question.selectors:
        taken = [series for series in known if selector.takes(series)]
        labels |= {label for series in taken for label in series.labels}
        if not taken:
            found.append(f"no series for {selector.name} {selector.matchers} of: {question.text}")
    return found + [f"nothing has the label {label} of: {question.text}" for label in question.grouped - labels]
