"""The most requests per second that workers could take, whatever they make clients wait: bounds by sums. Pure.

No order of events is better than these, so the search for a rate need not go beyond, and what is bound to lose need not
be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sizing.sample import Sample


@dataclass(frozen=True, slots=True)
class Capacity:
    """Seconds that a request takes of one worker, at the least: the reciprocal of its rate."""

    prefill_s: float
    decode_s: float
    """With as many sequences together as there is room for."""
    link_s: float
    """Of the link of the prefill worker, and as long of the decode worker's."""

    def pairs(self, prefill: int, decode: int) -> float:
        """Requests per second of so many of each."""
        return min(
            _rate(prefill, self.prefill_s), _rate(decode, self.decode_s), _rate(min(prefill, decode), self.link_s)
        )

    def unified(self, workers: int) -> float:
        """Requests per second of workers that do both."""
        return _rate(workers, self.prefill_s + self.decode_s)

    def mixed(self, prefill: int, decode: int, unified: int) -> float:
        """Requests per second of pairs with unified workers beside them, whoever gets which request."""
        return min(
            _rate(prefill + decode + unified, self.prefill_s + self.decode_s),
            _rate(prefill + unified, self.prefill_s),
            _rate(decode + unified, self.decode_s),
        )


def _rate(workers: int, seconds: float) -> float:
    return workers / seconds if seconds else float("inf")


def capacity_of(model: CostModel, sample: Sample) -> Capacity:
    """What a cache that forgets nothing holds of a prompt counts as computed."""
    return Capacity(_prefill_s(model, sample), _decode_s(model, sample), _link_s(model, sample))


def _prefill_s(model: CostModel, sample: Sample) -> float:
    engine, fresh, prompts_s = model.engine, 0, 0.0
    for ask, held in zip(sample.asks, sample.held_tokens, strict=True):
        fresh += ask.prompt_tokens - held
        prompts_s += engine.prompt_s(ask.prompt_tokens - held, held)
    shape = model.shape
    batches = max(fresh / shape.chunk_tokens, len(sample.asks) / (shape.batch_prompts or shape.chunk_tokens))
    least_s = batches * engine.prefill_us_least * 1e-6
    return (max(prompts_s, least_s) + batches * engine.prefill_us_per_batch * 1e-6) / len(sample.asks)


def _decode_s(model: CostModel, sample: Sample) -> float:
    prompts = np.array([ask.prompt_tokens for ask in sample.asks], np.float64)
    steps = np.array([ask.new_tokens - 1 for ask in sample.asks], np.float64)
    if not steps.any():
        return 0.0
    # KV of a sequence, over its steps; a request holds its pages for each of them at least.
    context = float(np.sum(steps * (prompts + 1 + (steps - 1) / 2)) / np.sum(steps))
    held = float(np.sum(steps * (prompts + steps + 1)) / np.sum(steps))
    together = max(1.0, min(model.shape.max_running, model.shape.kv_tokens / held))
    engine = model.engine
    step_us = max(engine.step_us + engine.step_us_per_sequence * together, engine.step_us_least_per_sequence * together)
    step_s = step_us * 1e-6 + engine.step_ns_per_token * 1e-9 * context * together
    return float(np.mean(steps)) * step_s / together


def _link_s(model: CostModel, sample: Sample) -> float:
    shape, total = model.shape, 0.0
    for ask in sample.asks:
        pages = -(-ask.prompt_tokens // shape.page_tokens)
        total += model.link.chunk_s(ask.prompt_tokens * shape.kv_bytes_per_token, pages)
    return total / len(sample.asks)
