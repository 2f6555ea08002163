"""How a trace is laid out for the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from tandem.cli.trace import Trace, show
from tandem.cli.waterfall import bar, table_of
from tandem.rpc.tracing.facts import facts, size_text
from tandem.rpc.tracing.layout import ShownSpan, layout, total_ms

MS = 1_000_000


def span(span_id: str, parent: str, start_ms: float, end_ms: float, **changes: object) -> ShownSpan:
    """A span of a gateway."""
    made = ShownSpan(
        span_id, parent, span_id, "tandem-gateway", "g", int(start_ms * MS), int(end_ms * MS), False, "", {}
    )
    return replace(made, **changes)  # type: ignore[arg-type]


SPANS = (
    span("chunk", "prefill", 20, 30),
    span("root", "", 10, 110),
    span("decode", "attempt", 16, 100),
    span("prefill", "attempt", 15, 60),
    span("attempt", "root", 12, 105),
    span("read", "root", 10, 11),
)


def test_children_follow_their_parents_and_siblings_their_begin() -> None:
    lines = layout(SPANS)
    assert [(line.span.name, line.depth) for line in lines] == [
        ("root", 0),
        ("read", 1),
        ("attempt", 1),
        ("prefill", 2),
        ("chunk", 3),
        ("decode", 2),
    ]
    assert [(line.offset_ms, line.duration_ms) for line in lines][:3] == [(0.0, 100.0), (0.0, 1.0), (2.0, 93.0)]
    assert total_ms(lines) == 100.0


def test_a_span_whose_parent_is_missing_begins_at_the_left() -> None:
    lines = layout([one for one in SPANS if one.name != "attempt"])
    assert [(line.span.name, line.depth) for line in lines] == [
        ("root", 0),
        ("read", 1),
        ("prefill", 0),
        ("chunk", 1),
        ("decode", 0),
    ]


def test_a_span_that_runs_lasts_as_long_as_is_known() -> None:
    lines = {line.span.name: line for line in layout((*SPANS, span("stream", "attempt", 90, 0)))}
    assert lines["stream"].duration_ms == 20.0


def test_no_spans_make_no_lines() -> None:
    assert layout([]) == ()
    assert total_ms([]) == 0.0


def test_bars_lie_where_their_spans_do() -> None:
    lines = {line.span.name: line for line in layout(SPANS)}
    assert bar(lines["root"], 100, 10) == "█" * 10
    assert bar(lines["chunk"], 100, 10) == " █" + " " * 8
    assert bar(lines["read"], 100, 10) == "█" + " " * 9, "as short as it is, it is seen"
    for name, line in lines.items():
        assert len(bar(line, 100, 10)) == 10, name
    (late,) = layout([span("late", "", 5, 5)])
    assert bar(late, 0, 4) == "█   "


def test_facts_are_short_and_a_failure_is_among_them() -> None:
    found = span(
        "x",
        "",
        0,
        1,
        failed=True,
        message="the link broke",
        attributes={
            "error.type": "LINK_LOST",
            "tandem.outcome": "LINK_LOST",
            "tandem.bytes": 1_500_000,
            "tandem.gb_per_s": 1.5,
            "tandem.unknown": 1,
            "tandem.rank": "dp0.pp0.tp1",
        },
    )
    assert facts(found) == "LINK_LOST  1.5 MB  1.5 GB/s  dp0.pp0.tp1  (the link broke)"


def test_sizes() -> None:
    assert [size_text(count) for count in (7, 1500, 2_000_000, 3e9)] == ["7 B", "1.5 KB", "2 MB", "3 GB"]


def test_what_is_missing_is_said() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160)
    show(Trace("ab" * 16, SPANS, 3, {"d1": "UNAVAILABLE: gone"}), console)
    text = out.getvalue()
    assert text.startswith(f"trace {'ab' * 16}  6 spans  100.00 ms")
    assert "3 spans are left out." in text
    assert "d1 did not answer" in text
    rows = [line for line in text.splitlines() if "█" in line]
    assert [row.split()[0] for row in rows] == ["root", "read", "attempt", "prefill", "chunk", "decode"]


def test_a_narrow_terminal_cuts_nothing_but_facts() -> None:
    out = io.StringIO()
    spans = [replace(one, attributes={"gen_ai.request.model": "m" * 60}) for one in SPANS]
    Console(file=out, width=80).print(table_of(layout(spans)))
    _, *rows = out.getvalue().splitlines()
    assert len(rows) == 6, "one line per span"
    assert [row.split()[:2] for row in rows[3:5]] == [["prefill", "gateway"], ["chunk", "gateway"]]
    assert all("mmm" in row and len(row) <= 80 for row in rows)
