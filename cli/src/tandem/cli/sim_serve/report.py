"""A simulated run in the numbers, and in the document, of `tandem bench serve`, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.cli.bench_serve.document import COLUMNS, QUANTILES, Result
from tandem.cli.bench_serve.load import Planned
from tandem.cli.bench_serve.numbers import Slo, Spread, Summary, flat, spread
from tandem.cli.bench_serve.workload import Piece
from tandem.cli.sim_serve.clients import ANYBODY, Client
from tandem.cli.sim_serve.cluster import Run
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.affinity import AffinityKey, key_of_text
from tandem.core.policies import DEFAULT_PREFIX_TOKENS


def ask_of(planned: Planned, client: Client = ANYBODY) -> Ask:
    """What a client of `tandem bench serve` asks, as the model takes it."""
    at_s, question = planned
    pieces = tuple((hash(piece.key), piece.tokens) for piece in question.pieces)
    session = key_of_text(question.session_name)
    return Ask(at_s, pieces, question.new_tokens, session, _beginning(question.pieces), client)


def _beginning(pieces: Sequence[Piece]) -> AffinityKey:
    """The key of a prompt's first tokens, of as many as by default in the gateway."""
    left, first = DEFAULT_PREFIX_TOKENS, list[tuple[tuple[int, int, int], int]]()
    for piece in pieces:
        if left <= 0:
            break
        first.append((piece.key, min(piece.tokens, left)))
        left -= piece.tokens
    return key_of_text(str(first))


def result_of_runs(
    target: Mapping[str, str], settings: Mapping[str, Any], made: str, runs: Sequence[tuple[int, Run]], slo: Slo
) -> Result:
    """Of at least one (seed, run)."""
    summaries = [summary_of(run, slo) for _, run in runs]
    return Result(
        target=target,
        settings=settings,
        made=made,
        seeds=tuple(seed for seed, _ in runs),
        summaries=tuple(asdict(one) for one in summaries),
        numbers=tuple(map(flat, summaries)),
        clients=tuple({"cpu_share": 0.0, "left_out": 0} for _ in runs),
        requests=tuple(_columns(run) for _, run in runs),
        itl_ms=tuple(_quantiles(_seen(run)) for _, run in runs),
    )


def summary_of(run: Run, slo: Slo) -> Summary:
    """The definitions are those of tandem.cli.bench_serve.numbers."""
    totals = run.totals
    answered, prompt = totals.answered, totals.prompt_tokens
    duration = max(run.ended_s - totals.first_s, 1e-9)
    kept = float(kept_of(run, slo).mean()) * answered if answered else 0.0
    planned = answered + sum(run.refused.values())
    return Summary(
        planned=planned,
        answered=answered,
        dropped=0,
        errors=dict(run.refused),
        short=0,
        duration_s=duration,
        requests_per_s=answered / duration,
        prompt_tokens_per_s=prompt / duration,
        output_tokens_per_s=totals.new_tokens / duration,
        cached_share=totals.cached_tokens / prompt if prompt else 0.0,
        goodput_per_s=kept / duration,
        slo_share=kept / planned if planned else 0.0,
        mean_in_flight=totals.e2e_s / duration,
        ttft_ms=spread(_ms(run.ttft_s)),
        itl_ms=_spread_of(_seen(run)),
        tpot_ms=spread(_ms(run.tpot_s)[np.asarray(run.new_tokens) > 1]),
        e2e_ms=spread(_ms(run.e2e_s)),
        late_ms=None,
    )


def kept_of(run: Run, slo: Slo) -> NDArray[np.bool_]:
    """Which answers are within the SLO, in the order in which they ended."""
    seen = {"ttft": run.ttft_s, "itl": run.longest_gap_s, "tpot": run.tpot_s, "e2e": run.e2e_s}
    kept = np.ones(len(run.at_s), np.bool_)
    for name, limit in slo.limits_ms.items():
        kept &= _ms(seen[name]) <= limit
    return kept


def _ms(seconds: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(seconds, np.float64) * 1000


def _seen(run: Run) -> Gaps:
    """Gaps as clients see them."""
    return run.gaps.spread([one * 1e-6 for one in run.plan.gateway.gap_us])


def _spread_of(gaps: Gaps) -> Spread | None:
    if not gaps.count:
        return None
    p50, p90, p99 = (gaps.quantile_s(share) * 1000 for share in (0.5, 0.9, 0.99))
    return Spread(gaps.mean_s * 1000, p50, p90, p99)


def _quantiles(gaps: Gaps) -> list[float]:
    if not gaps.count:
        return []
    return [round(gaps.quantile_s(float(share)) * 1000, 4) for share in np.linspace(0, 1, QUANTILES)]


def _columns(run: Run) -> dict[str, list[Any]]:
    order = np.argsort(np.asarray(run.at_s), kind="stable")
    columns: dict[str, NDArray[Any]] = {
        "at_s": np.round(np.asarray(run.at_s), 6),
        "late_ms": np.zeros(len(run.at_s)),
        "ttft_ms": np.round(_ms(run.ttft_s), 4),
        "tpot_ms": np.round(_ms(run.tpot_s), 4),
        "e2e_ms": np.round(_ms(run.e2e_s), 4),
        "longest_gap_ms": np.round(_ms(run.longest_gap_s), 4),
        "prompt_tokens": np.asarray(run.prompt_tokens),
        "new_tokens": np.asarray(run.new_tokens),
        "cached_tokens": np.asarray(run.cached_tokens),
    }
    found = {name: column[order].tolist() for name, column in columns.items()} | {"error": [""] * len(run.at_s)}
    assert set(found) == set(COLUMNS)
    return found
