"""A result as one HTML page that needs nothing from elsewhere. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from itertools import accumulate
from typing import Any, Final

import numpy as np

from tandem.cli.bench_serve.confidence import Interval, Method
from tandem.cli.bench_serve.document import Result
from tandem.cli.bench_serve.plots import Series, chart

MAX_DOTS: Final = 2000
"""Of one repeat; of more, every n-th is drawn."""
LATENCY_NAMES: Final = {"ttft_ms": "TTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "E2E", "late_ms": "late"}
RATE_NAMES: Final = {
    "requests_per_s": "answered requests/s",
    "output_tokens_per_s": "output tokens/s",
    "prompt_tokens_per_s": "prompt tokens/s",
    "goodput_per_s": "goodput, requests/s",
    "slo_share": "share within the SLO",
    "mean_in_flight": "mean in flight",
    "cached_share": "cached share of prompts",
}
STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#111827}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #e5e7eb}
td:first-child,th:first-child{text-align:left}
small{color:#6b7280}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1rem}
svg{width:100%;height:auto;font:11px system-ui,sans-serif;fill:#374151}svg .title{font-weight:600;font-size:13px}
svg .x{text-anchor:middle}svg .y{text-anchor:end}svg .axis{stroke:#6b7280;fill:none}svg .grid{stroke:#e5e7eb}
.warn{background:#fef3c7;padding:.5rem .8rem;border-radius:.3rem}
"""


def page(result: Result) -> str:
    """The whole page."""
    target = result.target
    title = f"{target.get('model') or target.get('api')} at {target.get('url')}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>tandem bench serve: {escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p><small>{escape(result.made)}, seeds {escape(str(list(result.seeds)))}</small></p>",
        *(f'<p class="warn">{escape(text)}</p>' for text in warnings(result)),
        _latencies(result.intervals()),
        _rates(result.intervals()),
        _fates(result),
        f'<h2>Distributions</h2><div class="plots">{"".join(_plots(result))}</div>',
        _settings(result.settings),
        "</body></html>\n",
    ]
    return "".join(parts)


def warnings(result: Result) -> Iterator[str]:
    """What a reader has to know before believing the numbers."""
    late = max((one["late_ms.p99"] for one in result.numbers if "late_ms.p99" in one), default=0.0)
    if late > 20:
        yield f"The generator was late: 99 % of the requests were sent at most {late:.0f} ms after their time."
    cpu = max(one["cpu_share"] for one in result.clients)
    if cpu > 0.7:
        yield f"The generator used {cpu:.0%} of a core: what is measured may be its own limit."
    dropped = sum(one["dropped"] for one in result.summaries)
    if dropped:
        yield f"{dropped} requests were not sent, as too many were in flight (--max-in-flight)."
    failed = sum((Counter(one["errors"]) for one in result.summaries), Counter[str]())
    if failed:
        yield "Failed requests: " + ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
    short = sum(one["short"] for one in result.summaries)
    if short:
        yield f"{short} answers were shorter than was asked for."


def _with_interval(one: Interval | None, digits: str = ",.2f") -> str:
    if one is None:
        return "<td></td>"
    if one.method is Method.NONE:
        return f"<td>{one.value:{digits}}</td>"
    return f"<td>{one.value:{digits}} <small>{one.low:{digits}} .. {one.high:{digits}}</small></td>"


def _latencies(intervals: Mapping[str, Interval]) -> str:
    rows = "".join(
        f"<tr><td>{label}, ms</td>"
        + "".join(_with_interval(intervals.get(f"{name}.{share}")) for share in ("mean", "p50", "p90", "p99"))
        + "</tr>"
        for name, label in LATENCY_NAMES.items()
    )
    return f"<h2>Latencies</h2><table><tr><th></th><th>mean</th><th>p50</th><th>p90</th><th>p99</th></tr>{rows}</table>"


def _rates(intervals: Mapping[str, Interval]) -> str:
    rows = "".join(
        f"<tr><td>{label}</td>{_with_interval(intervals.get(name), ',.3f')}</tr>" for name, label in RATE_NAMES.items()
    )
    return f"<h2>Rates</h2><table>{rows}</table>"


def _fates(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{seed}</td><td>{one['planned']}</td><td>{one['answered']}</td><td>{sum(one['errors'].values())}</td>"
        f"<td>{one['dropped']}</td><td>{one['duration_s']:.1f} s</td><td>{client['cpu_share']:.0%}</td></tr>"
        for seed, one, client in zip(result.seeds, result.summaries, result.clients, strict=True)
    )
    head = "<tr><th>seed</th><th>planned</th><th>answered</th><th>failed</th><th>dropped</th><th>time</th>"
    return f"<h2>Repeats</h2><table>{head}<th>generator's CPU</th></tr>{rows}</table>"


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in settings.items())
    return f"<h2>Settings</h2><table>{rows}</table>"


def _plots(result: Result) -> Iterator[str]:
    for name in ("ttft_ms", "e2e_ms"):
        label = f"{LATENCY_NAMES[name]}, ms"
        series = [Series(f"seed {seed}", *_cdf(_good(rows, name))) for seed, rows in _repeats(result)]
        yield chart(f"{LATENCY_NAMES[name]}: share of answers", label, "%", series)
    shares = np.linspace(0, 100, len(result.itl_ms[0]) or 1).tolist()
    itl = [Series(f"seed {seed}", gaps, shares) for seed, gaps in zip(result.seeds, result.itl_ms, strict=True) if gaps]
    yield chart("ITL: share of gaps", "ITL, ms", "%", itl)
    dots = [Series(f"seed {seed}", *_over_time(rows, "ttft_ms"), dots=True) for seed, rows in _repeats(result)]
    yield chart("TTFT by time of sending", "s", "TTFT, ms", dots)
    flight = [Series(f"seed {seed}", *_in_flight(rows)) for seed, rows in _repeats(result)]
    yield chart("Requests in flight", "s", "requests", flight)
    late = [Series(f"seed {seed}", *_over_time(rows, "late_ms"), dots=True) for seed, rows in _repeats(result)]
    yield chart("How late the generator was", "s", "ms", late)


def _repeats(result: Result) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    yield from zip(result.seeds, result.requests, strict=True)


def _good(rows: Mapping[str, list[Any]], name: str) -> list[float]:
    return [value for value, error in zip(rows[name], rows["error"], strict=True) if not error]


def _cdf(values: list[float]) -> tuple[list[float], list[float]]:
    if not values:
        return [], []
    shares = np.linspace(0, 1, 201)
    return np.quantile(values, shares).tolist(), (shares * 100).tolist()


def _over_time(rows: Mapping[str, list[Any]], name: str) -> tuple[list[float], list[float]]:
    times, values = _good(rows, "at_s"), _good(rows, name)
    step = max(1, -(-len(times) // MAX_DOTS))
    return times[::step], values[::step]


def _in_flight(rows: Mapping[str, list[Any]]) -> tuple[list[float], list[float]]:
    """Steps up where an answered request is sent and down where it ends."""
    columns = (_good(rows, name) for name in ("at_s", "late_ms", "e2e_ms"))
    sent = [(at + late / 1000, at + (late + e2e) / 1000) for at, late, e2e in zip(*columns, strict=True)]
    steps = sorted([(start, 1) for start, _ in sent] + [(end, -1) for _, end in sent])
    levels = list(accumulate(change for _, change in steps))
    xs, ys = [0.0], [0.0]
    for (moment, change), level in zip(steps, levels, strict=True):
        xs += [moment, moment]
        ys += [level - change, level]
    step = max(1, len(xs) // (2 * MAX_DOTS))
    return xs[::step], ys[::step]
