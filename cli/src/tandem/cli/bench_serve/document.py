"""The result of `tandem bench serve` as JSON, and back. Pure. Another shape gets another number in SCHEMA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from tandem.cli.bench_serve.confidence import Interval, of_repeats
from tandem.cli.bench_serve.numbers import Outcome, Slo, flat, gaps_ms, summarize
from tandem.core.errors import ErrorReason, TandemError

SCHEMA: Final = "tandem.bench.serve/1"
QUANTILES: Final = 201
"""Points of the distribution of ITL that are kept, evenly from 0 to 1."""
COLUMNS: Final = (
    *("at_s", "late_ms", "ttft_ms", "tpot_ms", "e2e_ms", "longest_gap_ms"),
    *("prompt_tokens", "new_tokens", "cached_tokens", "error"),
)


@dataclass(frozen=True, slots=True)
class ClientCost:
    """What the generator itself used in one repeat."""

    cpu_share: float
    """Of one core, while it ran."""
    left_out: int
    """Requests of the trace that the limits on number and time left out."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """One measured run."""

    seed: int
    outcomes: tuple[Outcome, ...]
    """In the order of their times."""
    client: ClientCost


@dataclass(frozen=True, slots=True)
class Result:
    """All repeats of one call, as read from JSON or as measured."""

    target: Mapping[str, str]
    """url, api, model."""
    settings: Mapping[str, Any]
    """The workload and its limits: what two results must share to be compared."""
    made: str
    """When, ISO 8601."""
    seeds: tuple[int, ...]
    summaries: tuple[Mapping[str, Any], ...]
    """Fields of numbers.Summary, one per repeat."""
    numbers: tuple[Mapping[str, float], ...]
    """numbers.flat of each repeat."""
    clients: tuple[Mapping[str, float], ...]
    requests: tuple[Mapping[str, list[Any]], ...]
    """Columns of each repeat."""
    itl_ms: tuple[list[float], ...]
    """QUANTILES of each repeat, or none."""

    def intervals(self) -> dict[str, Interval]:
        """Every number that all repeats have, with its confidence over them."""
        common = [name for name in self.numbers[0] if all(name in one for one in self.numbers)]
        return {name: of_repeats([one[name] for one in self.numbers]) for name in common}


def result_of(
    target: Mapping[str, str], settings: Mapping[str, Any], made: str, repeats: Sequence[Repeat], slo: Slo
) -> Result:
    """Of at least one repeat with at least one outcome."""
    summaries = [summarize(repeat.outcomes, slo) for repeat in repeats]
    return Result(
        target=target,
        settings=settings,
        made=made,
        seeds=tuple(repeat.seed for repeat in repeats),
        summaries=tuple(asdict(one) for one in summaries),
        numbers=tuple(map(flat, summaries)),
        clients=tuple(asdict(repeat.client) for repeat in repeats),
        requests=tuple(_columns(repeat.outcomes) for repeat in repeats),
        itl_ms=tuple(_quantiles(repeat.outcomes) for repeat in repeats),
    )


def _columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    rows = [
        (
            *(round(one.at_s, 6), round(one.late_ms, 4), round(one.ttft_ms, 4), round(one.tpot_ms, 4)),
            *(round(one.e2e_ms, 4), round(max(one.gaps_ms, default=0.0), 4)),
            *(one.prompt_tokens, one.new_tokens, one.cached_tokens, one.error),
        )
        for one in outcomes
    ]
    return {name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}


def _quantiles(outcomes: Sequence[Outcome]) -> list[float]:
    gaps = gaps_ms(outcomes)
    return [round(float(gap), 4) for gap in np.quantile(gaps, np.linspace(0, 1, QUANTILES))] if len(gaps) else []


def to_json(result: Result) -> str:
    """As one document, a line per repeat's column."""
    document = {
        "schema": SCHEMA,
        "target": dict(result.target),
        "settings": dict(result.settings),
        "made": result.made,
        "numbers": {
            name: {"value": one.value, "low": one.low, "high": one.high, "method": one.method.value}
            for name, one in result.intervals().items()
        },
        "repeats": [
            {"seed": seed, "summary": summary, "numbers": numbers, "client": client, "requests": rows, "itl_ms": itl}
            for seed, summary, numbers, client, rows, itl in zip(
                result.seeds,
                result.summaries,
                result.numbers,
                result.clients,
                result.requests,
                result.itl_ms,
                strict=True,
            )
        ],
    }
    return json.dumps(document) + "\n"


def from_json(text: str, name: str) -> Result:
    """Back from to_json. `name`: for the message. Raises INVALID_ARGUMENT."""
    try:
        document = json.loads(text)
        schema = document["schema"]
        if schema != SCHEMA:
            raise _bad(name, f"has the schema {schema!r}, wanted is {SCHEMA!r}")
        repeats = document["repeats"]
        if not repeats or any(set(COLUMNS) - set(one["requests"]) for one in repeats):
            raise _bad(name, "has no repeats, or not all columns")
        return Result(
            target=document["target"],
            settings=document["settings"],
            made=document["made"],
            seeds=tuple(one["seed"] for one in repeats),
            summaries=tuple(one["summary"] for one in repeats),
            numbers=tuple(one["numbers"] for one in repeats),
            clients=tuple(one["client"] for one in repeats),
            requests=tuple(one["requests"] for one in repeats),
            itl_ms=tuple(one["itl_ms"] for one in repeats),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(name, "is no result of `tandem bench serve`") from error


def _bad(name: str, what: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, f"{name} {what}", field="file")
