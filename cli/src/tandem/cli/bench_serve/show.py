"""Results and comparisons on the screen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tandem.cli.bench_serve.compare import Row
from tandem.cli.bench_serve.confidence import Interval, Method
from tandem.cli.bench_serve.document import Result
from tandem.cli.bench_serve.html import LATENCY_NAMES, RATE_NAMES, warnings
from tandem.cli.bench_serve.load import Progress as Sent


@contextmanager
def progress_bar(repeats: int) -> Iterator[Callable[[int, int, Sent], None]]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[more]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", more="")

        def changed(repeat: int, count: int, sent: Sent) -> None:
            more = f"{sent.in_flight} in flight, {sent.failed} failed, {sent.dropped} dropped"
            done = sent.ended + sent.dropped
            bar.update(task, description=f"repeat {repeat + 1}/{repeats}", total=count, completed=done, more=more)

        yield changed


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left")
    return table


def _cell(one: Interval | None) -> str:
    if one is None:
        return "-"
    half = f" ±{one.high - one.value:,.2f}" if one.method is Method.REPEATS else ""
    return f"{one.value:,.2f}{half}"


def show_result(result: Result) -> None:
    """Prints the numbers, and what to know of them."""
    console, intervals = Console(width=120), result.intervals()
    table = _table("ms", "mean", "p50", "p90", "p99")
    for name, label in LATENCY_NAMES.items():
        cells = [_cell(intervals.get(f"{name}.{share}")) for share in ("mean", "p50", "p90", "p99")]
        table.add_row(label, *cells)
    console.print(table)
    console.print()
    rates = _table("", "")
    for name, label in RATE_NAMES.items():
        rates.add_row(label, _cell(intervals.get(name)))
    planned = sum(one["planned"] for one in result.summaries)
    rates.add_row("answered of planned", f"{sum(one['answered'] for one in result.summaries)} of {planned}")
    rates.add_row("generator's CPU", f"{max(one['cpu_share'] for one in result.clients):.0%} of a core")
    console.print(rates)
    for text in warnings(result):
        console.print(f"\n{text}", highlight=False, markup=False)


def show_comparison(rows: Sequence[Row], differences: Sequence[str]) -> None:
    """Prints ratios, after what they have to be read with."""
    console = Console(width=120)
    for text in differences:
        console.print(f"differs in {text}", highlight=False, markup=False)
    table = _table("", "A", "B", "B / A", "95 %", "", "from")
    for row in rows:
        known = row.ratio.method is not Method.NONE
        interval = f"{row.ratio.low:.3f} .. {row.ratio.high:.3f}" if known else "-"
        values = f"{row.first:,.2f}", f"{row.second:,.2f}", f"{row.ratio.value:.3f}"
        table.add_row(row.name, *values, interval, row.verdict.value, row.ratio.method.value if known else "")
    console.print(table)
