"""Prompts, what a model says to them by transformers alone, and whether a pair gave everything back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.sglang.pair import Pair


def prompt(tokens: int, salt: int = 0) -> list[int]:
    """A prompt of so many tokens, unlike those of other salts from the first token on."""
    return [6 + (salt * 131 + index * index * 7 + index) % 900 for index in range(tokens)]


def greedy(checkpoint: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What the model says, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    answers = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
        )
        answers.append(out[0, len(ids) :].tolist())
    return answers


async def whole(pair: Pair, *pools: str) -> None:
    """Both sides are idle, and everything that was taken of these pools, and no others, is back."""
    for worker in (pair.prefill, pair.decode):
        status = await worker.idle()
        assert tuple(pool["name"] for pool in status["pools"]) == pools
        for pool in status["pools"]:
            assert pool["free"] + pool["evictable"] == pool["total"], (worker.role, pool)
            assert pool["granted"] == 0
