"""The results of `tandem bench pd` as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tandem.cli.bench_pd.numbers import SIDES, Load, Samples


def document(samples: Samples) -> dict[str, Any]:
    """The results as JSON."""
    return {
        "rows": [asdict(row) for row in samples.rows()],
        "parts": [asdict(part) for part in samples.parts()],
        "parallel_tokens_per_s": {side: samples.parallel_tokens_per_s(side) for side in SIDES},
        "parallel_rounds": dict(samples.parallel),
        "disturbed": [asdict(row) for row in samples.disturbed_rows()],
        "gains": [asdict(gain) for gain in samples.gains()],
        "crossovers": {str(length): per_s for length, per_s in samples.crossovers().items()},
        "targets": [{**asdict(target), "reached": target.reached} for target in samples.targets()],
    }


def show(samples: Samples, at_once: int) -> None:
    """Prints the results as tables. at_once: requests in parallel."""
    console = Console(width=120)
    console.print("one request at a time")
    console.print(
        _table(
            ("prompt", "side", "TTFT p50 ms", "p99", "ITL p50 ms", "p99", "tok/s"),
            (
                (
                    one.prompt_tokens,
                    one.side,
                    one.ttft_p50_ms,
                    one.ttft_p99_ms,
                    one.itl_p50_ms,
                    one.itl_p99_ms,
                    one.tokens_per_s,
                )
                for one in samples.rows()
            ),
        )
    )
    console.print("\nwhere its time goes")
    console.print(
        _table(
            ("prompt", "side", "prefill ms", "%", "decode ms", "%", "total ms"),
            (
                (
                    one.prompt_tokens,
                    one.side,
                    one.prefill_ms,
                    100 * one.prefill_share,
                    one.decode_ms,
                    100 * (1 - one.prefill_share),
                    one.total_ms,
                )
                for one in samples.parts()
            ),
        )
    )
    pd, other = (samples.parallel_tokens_per_s(side) for side in SIDES)
    console.print(f"\n{at_once} in parallel: pd {pd:.0f} tok/s, plain {other:.0f} tok/s\n")
    _show_disturbed(console, samples)
    for target in samples.targets():
        sign, verdict = ">=" if target.higher_is_better else "<=", "reached" if target.reached else "MISSED"
        console.print(
            f"{target.name}: {target.value:.2f} {target.unit} ({sign} {target.limit} {target.unit}: {verdict})"
        )


def _show_disturbed(console: Console, samples: Samples) -> None:
    rows = samples.disturbed_rows()
    if not rows:
        return
    console.print("streams that run while prompts arrive")
    titles = ("arriving", "side", "ITL p50 ms", "p99", "max", "tok/s", "arrived", "TTFT p50 ms", "p99", "not sent")
    console.print(
        _table(
            titles,
            (
                (
                    *(one.load, one.side, one.itl_p50_ms, one.itl_p99_ms, one.itl_max_ms, one.tokens_per_s),
                    *(one.arrivals, one.ttft_p50_ms, one.ttft_p99_ms, one.dropped),
                )
                for one in rows
            ),
        )
    )
    console.print("\nITL p99, pd / plain")
    for gain in samples.gains():
        console.print(f"  {gain.load}: {gain.median:.2f} ({gain.lowest:.2f} to {gain.highest:.2f})")
    for length, per_s in samples.crossovers().items():
        from_there = "at no load in every round" if per_s is None else f"from {Load(length, per_s)} on, in every round"
        console.print(f"  {length} tokens arriving: pd has the lower ITL p99 {from_there}")
    console.print()


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in ("side", "arriving") else "right")
    for row in rows:
        table.add_row(
            *(f"{cell:.1f}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in row)
        )
    return table
