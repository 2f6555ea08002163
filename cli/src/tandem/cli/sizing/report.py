"""What a search found, as a document and as a page. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Final

from tandem.cli.bench_serve.html import STYLE
from tandem.cli.bench_serve.plots import Series, chart
from tandem.cli.sizing.candidates import Kind
from tandem.cli.sizing.goodput import Finding, Question
from tandem.cli.sizing.search import Outcome, frontier, winner
from tandem.core.policies import PolicyName

SCHEMA: Final = "tandem.plan/1"
COLUMNS: Final = (
    *("workers", "prefill:decode", "policy", "page", "goodput/s", "per worker", "of bound"),
    *("TTFT p90 ms", "gap p90 ms", "binds", "cost / 1M"),
)
OVERLAPS: Final = 3
"""A run should have so many times the requests that are in flight at once."""


@dataclass(frozen=True, slots=True)
class Report:
    """A search, and how it is told."""

    title: str
    """The model and its GPU."""
    question: Question
    outcome: Outcome
    settings: Mapping[str, Any]
    gpus_per_worker: int = 1
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: not known."""
    wanted_per_s: float = 0.0
    """Requests per second that have to be served; 0: as many as each worker can."""
    lines: Mapping[str, str] | None = None
    """How to start the winner; None: there is none."""

    @property
    def best(self) -> Finding | None:
        """The winner."""
        return winner(self.outcome.findings, self.wanted_per_s)

    @property
    def frontier(self) -> Sequence[Finding]:
        """By number of workers."""
        return frontier(self.outcome.findings)

    def cost(self, finding: Finding) -> float | None:
        """Of a million new tokens; None where the price is not known, or nothing is served."""
        tokens_per_h = finding.goodput_per_s * self.question.sample.mean_new_tokens * 3600
        if not self.price_per_gpu_hour or not tokens_per_h:
            return None
        return self.price_per_gpu_hour * finding.workers * self.gpus_per_worker / tokens_per_h * 1e6


def notes(report: Report) -> Iterator[str]:
    """What a reader has to know before believing it."""
    question, findings = report.question, report.outcome.findings
    yield f"Costs: {question.model.source}."
    together = max((one.served.in_flight for one in findings if one.served), default=0.0)
    if together * OVERLAPS > len(question.sample.asks):
        wanted = round(together * OVERLAPS, -2)
        yield (
            f"Up to {together:,.0f} requests are in flight at once: with {len(question.sample.asks):,} in a run the "
            f"goodput is too high; take --requests {wanted:.0f} or more."
        )
    if report.best is None:
        reached = max((one.goodput_per_s for one in findings), default=0.0)
        least = f"{report.wanted_per_s:g} requests/s" if reached else "the SLO, at any rate"
        yield f"Nothing that was tried keeps {least}. The most was {reached:,.2f} requests/s."
    elif report.best.candidate.arrangement.kind is Kind.UNIFIED:
        yield "Unified workers win: disaggregation does not pay for this load and this SLO."
    elif report.best.candidate.policy is PolicyName.CONSISTENT_HASH:
        yield "The winner needs clients that name their sessions: X-Session-Id, docs/routing.md."


def document(report: Report) -> dict[str, Any]:
    """All of it, as JSON has it."""
    question, best = report.question, report.best
    on_it = report.frontier
    return {
        "schema": SCHEMA,
        "title": report.title,
        "settings": dict(report.settings),
        "slo_ms": dict(question.slo.limits_ms),
        "share": question.share,
        "costs": asdict(question.model),
        "requests": len(question.sample.asks),
        "mean_new_tokens": question.sample.mean_new_tokens,
        "held_share": question.sample.held_share,
        "findings": [_row(report, one) | {"frontier": one in on_it} for one in report.outcome.findings],
        "variants": [_row(report, one) for one in report.outcome.variants],
        "skipped": [{"arrangement": str(one), "bound_per_s": bound} for one, bound in report.outcome.skipped],
        "beaten": [str(one) for one in report.outcome.beaten],
        "winner": _row(report, best) if best else None,
        "lines": dict(report.lines or {}),
        "notes": list(notes(report)),
    }


def _row(report: Report, one: Finding) -> dict[str, Any]:
    return {
        "arrangement": str(one.candidate.arrangement),
        "workers": one.workers,
        "policy": one.candidate.policy.value,
        "page_tokens": one.candidate.page_tokens,
        "short_tokens": one.candidate.short_tokens if one.kind is Kind.MIXED else None,
        "goodput_per_s": one.goodput_per_s if one.served or not one.above_per_s else None,
        "above_per_s": one.above_per_s,
        "per_worker_per_s": one.per_worker,
        "bound_per_s": one.bound_per_s,
        "binds": one.part.value if one.part else None,
        "cost_per_million_new_tokens": report.cost(one),
        "at_goodput": asdict(one.served) if one.served else None,
    }


def cells(report: Report, one: Finding) -> tuple[str, ...]:
    """Of a row of the table, under COLUMNS."""
    cost, served = report.cost(one), one.served
    return (
        str(one.workers),
        str(one.candidate.arrangement),
        one.candidate.policy.value,
        str(one.candidate.page_tokens),
        f"{one.goodput_per_s:,.2f}",
        f"{one.per_worker:,.2f}",
        f"{one.goodput_per_s / one.bound_per_s:.0%}",
        f"{served.ttft_ms:,.0f}" if served else "-",
        f"{served.gap_ms:,.0f}" if served else "-",
        one.part.value if one.part else "-",
        "-" if cost is None else f"{cost:,.3f}",
    )


def page(report: Report, made: str) -> str:
    """An HTML page that loads nothing from anywhere."""
    findings, on_it, best = report.outcome.findings, report.frontier, report.best
    head = "".join(f"<th>{escape(name)}</th>" for name in (*COLUMNS, ""))
    rows = "".join(_html_row(report, one, one in on_it, one is best) for one in findings)
    lines = "".join(
        f'<h2>{escape(name)}</h2><pre style="overflow:auto">{escape(text)}</pre>'
        for name, text in (report.lines or {}).items()
    )
    settings = {**report.settings, **_flat(asdict(report.question.model))}
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(one))}</td></tr>" for name, one in settings.items())
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>tandem plan: {escape(report.title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(report.title)}</h1><p><small>{escape(made)}</small></p>",
            *(f'<p class="warn">{escape(text)}</p>' for text in notes(report)),
            f"<h2>Best of each arrangement</h2><table><tr>{head}</tr>{rows}</table>",
            f'<h2>Plots</h2><div class="plots">{"".join(_plots(report))}</div>',
            lines,
            f"<h2>Settings and costs</h2><table>{table}</table></body></html>\n",
        ]
    )


def _html_row(report: Report, one: Finding, on_frontier: bool, wins: bool) -> str:
    mark = "winner" if wins else "frontier" if on_frontier else ""
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in (*cells(report, one), mark))}</tr>"


def _plots(report: Report) -> Iterator[str]:
    findings, on_it = report.outcome.findings, report.frontier
    series = [Series("frontier", *_points(on_it))]
    for kind in Kind:
        series.append(Series(kind.value, *_points(one for one in findings if one.kind is kind), dots=True))
    yield chart("Goodput by workers", "workers", "requests/s", series)
    yield from _splits(report, (report.best or on_it[-1]).workers) if on_it else ()


def _splits(report: Report, workers: int) -> Iterator[str]:
    """All splits of the winner's number of workers, those that were not tried by their bounds."""
    outcome = report.outcome
    tried = [(one.candidate.arrangement, one.bound_per_s, one.goodput_per_s) for one in outcome.findings]
    bounds = [(one, bound) for one, bound, _ in tried] + list(outcome.skipped)
    above = sorted((one.prefill, bound) for one, bound in bounds if one.workers == workers and one.kind is Kind.PAIRS)
    found = [(one.prefill, goodput) for one, _, goodput in tried if one.workers == workers and one.kind is Kind.PAIRS]
    series = [
        Series("bound", [x for x, _ in above], [y for _, y in above]),
        Series("goodput", [x for x, _ in found], [y for _, y in found], dots=True),
    ]
    yield chart(f"Splits of {workers} workers", "prefill workers", "requests/s", series)


def _points(findings: Iterable[Finding]) -> tuple[list[float], list[float]]:
    found = [(float(one.workers), one.goodput_per_s) for one in findings]
    return [x for x, _ in found], [y for _, y in found]


def _flat(costs: Mapping[str, Any]) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, value in costs.items():
        found |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return found
