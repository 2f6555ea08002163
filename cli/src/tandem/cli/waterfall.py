"""One trace as a waterfall for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from tandem.rpc.tracing.facts import facts
from tandem.rpc.tracing.layout import Line, ShownSpan, total_ms

BAR_CELLS: Final = 24


def bar(line: Line, total_ms: float, cells: int = BAR_CELLS) -> str:
    """Where a span lies in the whole, in so many cells; at least one of them is filled."""
    if total_ms <= 0:
        return "█".ljust(cells)
    first = min(cells - 1, int(line.offset_ms / total_ms * cells))
    end = (line.offset_ms + line.duration_ms) / total_ms * cells
    filled = max(1, min(cells, round(end)) - first)
    return (" " * first + "█" * filled)[:cells].ljust(cells)


def table_of(lines: Sequence[Line]) -> Table:
    """The waterfall, one line per span: of a narrow terminal the facts at the right are cut, and nothing else."""
    whole = total_ms(lines)
    rows = [(_name(line), _place(line.span), f"{line.offset_ms:.2f}", _took(line)) for line in lines]
    titles = ("span", "in", "at ms", "took ms")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for place, title in enumerate(titles):
        width = max(len(cells[place]) for cells in [titles, *rows])
        table.add_column(title, header_style="dim", justify="right" if place > 1 else "left", min_width=width)
    table.add_column("", min_width=BAR_CELLS)
    table.add_column("", style="dim", no_wrap=True, overflow="ellipsis")
    for line, (name, place_name, at, took) in zip(lines, rows, strict=True):
        style = "red" if line.span.failed else ""
        bars = Text(bar(line, whole), style=style or "cyan")
        table.add_row(Text(name, style=style), Text(place_name, style="dim"), at, took, bars, Text(facts(line.span)))
    return table


def _name(line: Line) -> str:
    return "  " * line.depth + line.span.name


def _took(line: Line) -> str:
    return f"{line.duration_ms:.2f}" if line.span.end_ns else f"{line.duration_ms:.2f}+"


def _place(span: ShownSpan) -> str:
    """Worker id, or gateway: its random name tells nobody anything."""
    service = span.service.removeprefix("tandem-")
    return service if service == "gateway" else span.instance
