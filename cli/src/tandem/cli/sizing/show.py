"""A search on the screen, while it goes on and when it is over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tandem.cli.sizing.goodput import Finding
from tandem.cli.sizing.report import COLUMNS, Report, cells, notes
from tandem.cli.sizing.search import Each, Item


@contextmanager
def workforce(processes: int) -> Iterator[Each]:
    """Does the work of a search in so many processes, with a bar on stderr where that is a terminal."""
    with ExitStack() as stack:
        pool = None
        if processes > 1:
            pool = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn")))
        bar = stack.enter_context(_bar())
        task = bar.add_task("candidates", total=0)
        total = 0

        def each(work: Callable[[Item], Finding], items: Iterable[Item], /) -> Iterable[Finding]:
            nonlocal total
            todo = list(items)
            total += len(todo)
            bar.update(task, total=total)
            for finding in pool.map(work, todo) if pool else map(work, todo):
                bar.advance(task)
                yield finding

        yield each


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def show(report: Report, took_s: float) -> None:
    """Prints the table, what to know of it, and how to start the winner. took_s: the search."""
    console, best, on_it = Console(width=140), report.best, report.frontier
    priced = bool(report.price_per_gpu_hour)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in COLUMNS if priced else COLUMNS[:-1]:
        table.add_column(name, justify="left" if name in ("prefill:decode", "policy", "binds") else "right")
    table.add_column("")
    for one in report.outcome.findings:
        row = cells(report, one) if priced else cells(report, one)[:-1]
        table.add_row(*row, "winner" if one is best else "frontier" if one in on_it else "")
    console.print(report.title, highlight=False, markup=False)
    console.print()
    console.print(table)
    if report.outcome.skipped:
        rest = ", ".join(f"{one} ({bound:,.1f}/s)" for one, bound in report.outcome.skipped)
        console.print(f"\nNot tried, as their bounds are too low: {rest}", highlight=False, markup=False)
    if report.outcome.beaten:
        rest = ", ".join(map(str, report.outcome.beaten))
        console.print(f"\nTried, and not better than others as few: {rest}", highlight=False, markup=False)
    console.print()
    requests = len(report.question.sample.asks)
    tried = f"Tried {len(report.outcome.variants)} set-ups in {took_s:,.0f} s"
    console.print(f"{tried}, each at one rate or more with {requests:,} requests.", highlight=False, markup=False)
    for text in notes(report):
        console.print(text, highlight=False, markup=False)
    for name, text in (report.lines or {}).items():
        # As one line each, so that it can be copied.
        print(f"\n{name}:\n    {text}")
