"""Figures as text and as a drawing. Pure, but for what the machine is."""

from __future__ import annotations

import os
import platform
from html import escape
from pathlib import Path
from typing import Final

from tandem.cli.bench_gateway.figures import Figures, Goal, Series
from tandem.cli.bench_gateway.peer_venv import SGLANG_ROUTER
from tandem.cli.bench_gateway.sides import TANDEM
from tandem.core.policies import PolicyName

GOALS: Final = (
    Goal("whole p50, added", 0.5),
    Goal("first chunk p50, added", 0.5),
    Goal("whole p99, added", 2),
    Goal("first chunk p99, added", 2),
    Goal("tokens per CPU-second of the gateway", 2, at_most=False, ratio=True),
    Goal("requests per CPU-second of the gateway", 1, at_most=False, ratio=True),
    Goal("200 streams: gap p99, added", 2),
    Goal("memory per idle stream", 40),
    Goal("cancel to prefill stopped p99", 50),
    *(Goal(f"routing by {policy.value}, p99", 50) for policy in PolicyName),
)
BAR: Final = 360
ROW: Final = 18


def tables(figures: Figures) -> str:
    """Every figure by side, then the goals."""
    lines = []
    last = ""
    for one in sorted(figures.all(), key=lambda one: _place(figures, one)):
        if one.figure != last:
            lines.append(f"\n{one.figure}" + (f" ({one.unit})" if one.unit else ""))
            last = one.figure
        spread = f"  {min(one.values):.4g} to {max(one.values):.4g}" if len(one.values) > 1 else ""
        ratio = figures.ratio(one.figure, one.side, one.mode, SGLANG_ROUTER)
        against = f"  {ratio[0]:.2f} x {SGLANG_ROUTER}" if ratio and one.side != SGLANG_ROUTER else ""
        lines.append(f"  {one.side:<14}{one.mode:<10}{one.value:>12.4g}{spread}{against}")
    lines.append("\ngoals")
    lines += [f"  {line}" for line in verdicts(figures)]
    return "\n".join([*lines, *(f"  {note}" for note in figures.notes)])


def verdicts(figures: Figures) -> list[str]:
    """Each goal that was measured, and whether it was reached."""
    found = []
    for goal in GOALS:
        for one in figures.all():
            if one.side != TANDEM or not one.figure.endswith(goal.figure):
                continue
            value, unit = one.value, one.unit
            if goal.ratio:
                ratio = figures.ratio(one.figure, TANDEM, one.mode, SGLANG_ROUTER)
                if ratio is None:
                    continue
                value, unit = ratio[0], f"x {SGLANG_ROUTER}"
            reached = value <= goal.limit if goal.at_most else value >= goal.limit
            sign, word = "<=" if goal.at_most else ">=", "reached" if reached else "MISSED"
            found.append(f"{one.figure}, {one.mode}: {value:.3g} {unit} ({sign} {goal.limit:g}: {word})")
    return found


def machine() -> dict[str, str | int]:
    """What this runs on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = os.getloadavg()[0]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0].partition(":")[2].strip() if names else "",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": f"{load:.2f}",
    }


def drawing(figures: Figures) -> str:
    """Bars, one block per figure that more than one side has, as SVG that needs nothing else."""
    parts, y = [], 10
    by_figure: dict[str, list[Series]] = {}
    for one in figures.all():
        by_figure.setdefault(one.figure, []).append(one)
    for figure, some in by_figure.items():
        if len({one.side for one in some}) < 2:
            continue
        most = max(abs(one.value) for one in some) or 1
        parts.append(f'<text x="10" y="{y + 12}" class="t">{escape(figure)} {escape(some[0].unit)}</text>')
        y += ROW
        for one in some:
            width = max(1, abs(one.value) / most * BAR)
            kind = "us" if one.side == TANDEM else "peer"
            label = escape(f"{one.side}, {one.mode}")
            parts.append(f'<text x="190" y="{y + 12}" text-anchor="end">{label}</text>')
            parts.append(f'<rect x="200" y="{y + 2}" width="{width:.0f}" height="{ROW - 5}" class="{kind}"/>')
            parts.append(f'<text x="{206 + width:.0f}" y="{y + 12}">{one.value:.4g}</text>')
            y += ROW
        y += ROW // 2
    style = "text{font:11px sans-serif;fill:#222}.t{font-weight:bold}.us{fill:#2b6cb0}.peer{fill:#a0aec0}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y + 10}">'
    return "\n".join(
        [head, f"<style>{style}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _place(figures: Figures, one: Series) -> int:
    """Where a figure comes first."""
    return [other.figure for other in figures.all()].index(one.figure)
