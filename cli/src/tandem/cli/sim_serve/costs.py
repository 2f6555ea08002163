"""What engines and links take, as sums with few terms. Pure.

A prompt's tokens cost their share of the weights' arithmetic, and attention to every token before them; a decode step
costs the reading of the weights once, and of each sequence's KV (DistServe, arXiv 2401.09670, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """Of one engine. All are at least 0."""

    prefill_us_per_batch: float = 0.0
    prefill_us_per_token: float = 10.0
    prefill_ns_per_pair: float = 0.0
    """A pair is a token and one of those before it."""
    step_us: float = 2_000.0
    """Of decode, whatever is in its batch."""
    step_us_per_sequence: float = 10.0
    step_ns_per_token: float = 0.0
    """Per token of KV of all sequences of the batch."""
    prefill_us_least: float = 0.0
    """A batch of prompts takes no less: reading the weights, while the arithmetic of its tokens goes on."""
    step_us_least_per_sequence: float = 0.0
    """A step takes no less than this per sequence, besides its KV: arithmetic, while the weights are read."""

    def batch_s(self, prompts_s: float) -> float:
        """Of a batch of prompts. prompts_s: the sum of `prompt_s` of them."""
        return self.prefill_us_per_batch * 1e-6 + max(prompts_s, self.prefill_us_least * 1e-6)

    def prompt_s(self, tokens: int, before: int) -> float:
        """What tokens of one prompt add to a batch. before: tokens of it that have KV already."""
        pairs = tokens * (before + tokens / 2)
        return self.prefill_us_per_token * tokens * 1e-6 + self.prefill_ns_per_pair * pairs * 1e-9

    def steps_s(self, steps: int, sequences: int, context: int) -> float:
        """So many steps of a batch in a row. context: tokens of KV at their start; each step adds one per sequence."""
        grown = context * steps + sequences * (steps * (steps - 1) / 2)
        step_us = max(self.step_us + self.step_us_per_sequence * sequences, self.step_us_least_per_sequence * sequences)
        return step_us * steps * 1e-6 + self.step_ns_per_token * grown * 1e-9


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """Of moving KV from one worker to another. A worker sends, or receives, one chunk at a time."""

    gbytes_per_s: float = 12.5
    """10^9 bytes per second; above 0."""
    us_per_chunk: float = 100.0
    """Until both sides know that it has landed; the link is taken meanwhile."""
    ns_per_page: float = 0.0
    """Ranges that are posted, or copied, one by one."""

    def chunk_s(self, byte_count: float, pages: int = 0) -> float:
        """Of one chunk."""
        return self.us_per_chunk * 1e-6 + self.ns_per_page * pages * 1e-9 + byte_count / (self.gbytes_per_s * 1e9)


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """What a worker has room for."""

    kv_tokens: int = 1 << 20
    """Of all its pages."""
    max_running: int = 256
    chunk_tokens: int = 8192
    """Prompt tokens that prefill computes at once."""
    cache_tokens: int = 0
    """Of its pages, what may be kept of prompts that are over; 0 = no prefix cache."""
    kv_bytes_per_token: int = 131_072
    page_tokens: int = 16
    """Whole pages are held and kept."""
    batch_prompts: int = 0
    """Most prompts that prefill computes at once; 0 = as many as their tokens let."""


@dataclass(frozen=True, slots=True)
class GatewayCosts:
    """Of what is before and behind the workers."""

    us_per_request: float = 0.0
    """That a first token comes later for it, on an otherwise idle system; nobody waits for the other meanwhile."""
    gap_us: tuple[float, ...] = ()
    """By how much a gap between two tokens, as clients see it, is longer than its step: quantiles, of equal shares."""
