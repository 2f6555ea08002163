"""From what was measured to the costs of a cluster's model. Pure.

Each cost is a sum of terms that are at least 0, fitted by least squares of the relative error, so that short prompts
count as much as long ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.core.errors import ErrorReason, TandemError

Floats = NDArray[np.float64]
_SHARES: Final = (np.arange(50) + 0.5) / 50
"""Of all gaps, which quantiles are kept of them."""


@dataclass(frozen=True, slots=True)
class PromptSample:
    """One prompt, alone in the system."""

    tokens: int
    ttft_s: float
    first_gap_s: float
    """From its first token to the second, which comes when the KV has moved."""


@dataclass(frozen=True, slots=True)
class BurstSample:
    """Prompts that had come by the time that prefill ended a batch, and kept it busy from then on."""

    tokens: int
    """Of each."""
    prompts: int
    batches: int
    """Whose first tokens came apart from each other."""
    busy_s: float


@dataclass(frozen=True, slots=True)
class StepSample:
    """Sequences that decode together."""

    sequences: int
    context_tokens: float
    """KV of all of them, on average over the steps."""
    step_s: float
    off_s: tuple[float, ...] = ()
    """How much longer than a step the single gaps were."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs, and how far off each is from its own samples."""

    engine: EngineCosts
    link: LinkCosts
    gateway: GatewayCosts
    prefill_error: float
    """Median of |fitted - measured| / measured, 0.."""
    step_error: float
    link_error: float


def fit(
    prompts: Sequence[PromptSample], bursts: Sequence[BurstSample], steps: Sequence[StepSample], shape: WorkerShape
) -> Fit:
    """bursts: none, and what the gateway adds to a prompt is counted as prefill's. shape: what prefill computes, and
    pushes, at once; of KV, what moves: above 0.

    Raises INVALID_ARGUMENT if there are fewer than three different prompts or batches.
    """
    if len({one.tokens for one in prompts}) < 3 or len({(one.sequences, one.context_tokens) for one in steps}) < 3:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, "at least three lengths of prompts and three batches are needed"
        )
    tokens = _floats([one.tokens for one in prompts])
    ttft = _floats([one.ttft_s for one in prompts])
    rows = [(1.0, *_computed(1, one.tokens, 1, shape)) for one in prompts]
    rows += [(0.0, *_computed(one.prompts, one.tokens, one.batches, shape)) for one in bursts]
    terms, until = _floats(rows), _floats([*ttft, *(one.busy_s for one in bursts)])
    known = slice(0 if bursts else 1, None)
    costs = np.zeros(4)
    costs[known] = _at_least_0(terms[:, known], until)
    gateway, batch, per_token, per_pair = costs
    prefill_error = _off(terms @ costs, until)

    shapes = np.stack([np.ones(len(steps)), [one.sequences for one in steps], [one.context_tokens for one in steps]], 1)
    took = _floats([one.step_s for one in steps])
    step, per_sequence, per_context = costs = _at_least_0(shapes, took)
    step_error = _off(shapes @ costs, took)
    engine = EngineCosts(
        batch * 1e6, per_token * 1e6, per_pair * 1e9, step * 1e6, per_sequence * 1e6, per_context * 1e9
    )

    moved = _floats([one.first_gap_s for one in prompts]) - [engine.steps_s(1, 1, one.tokens + 1) for one in prompts]
    moved = np.maximum(moved, 1e-6)
    last_chunk = shape.kv_bytes_per_token * ((tokens - 1) % shape.chunk_tokens + 1)
    link_terms = np.stack([np.ones_like(tokens), last_chunk], axis=1)
    chunk, per_byte = costs = _at_least_0(link_terms, moved)
    link = LinkCosts(1 / max(per_byte * 1e9, 1e-6), chunk * 1e6)
    link_error = _off(link_terms @ costs, moved)
    offs = [off for one in steps for off in one.off_s]
    spread = tuple((np.quantile(offs, _SHARES) * 1e6).round(1).tolist()) if offs else ()
    return Fit(engine, link, GatewayCosts(gateway * 1e6, spread), prefill_error, step_error, link_error)


def _computed(prompts: int, tokens: int, batches: int, shape: WorkerShape) -> tuple[float, float, float]:
    """What prefill computes of prompts: batches, tokens, pairs of tokens. batches: that could be told apart; one that
    ends no prompt can't."""
    batches = max(batches, math.ceil(prompts * tokens / shape.chunk_tokens))
    return batches, prompts * tokens, prompts * tokens**2 / 2


def _at_least_0(terms: Floats, measured: Floats) -> Floats:
    """The factors of the terms: of all choices of terms the least relative error without a negative factor."""
    weighted, ones = terms / measured[:, None], np.ones(len(measured))
    best, best_error = np.zeros(terms.shape[1]), float("inf")
    for count in range(1, terms.shape[1] + 1):
        for chosen in combinations(range(terms.shape[1]), count):
            found = np.linalg.lstsq(weighted[:, chosen], ones, rcond=None)[0]
            error = float(np.sum((weighted[:, chosen] @ found - ones) ** 2))
            if (found >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(terms.shape[1]), error
                best[list(chosen)] = found
    return best


def _off(fitted: Floats, measured: Floats) -> float:
    return float(np.median(np.abs(fitted - measured) / measured))


def _floats(values: Sequence[float] | Sequence[tuple[float, ...]]) -> Floats:
    return np.asarray(values, np.float64)
