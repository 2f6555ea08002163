"""Whether `tandem bench serve` and SGLang's bench_serving tell the same: `python -m benchmarks.serve_agrees`.

One system, with the mock engine or with SGLang, and pairs of requests with the same prompt: one by our client, one by
SGLang's `async_request_openai_completions`, one at a time, and who is first changes. What came is summed up by each
side's own functions. Whatever else the machine does hits both alike, so that the ratio of the two is the clients'.

Needs SGLang. Where its optional package `datasets` is missing, an empty one stands in: no data set is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import types
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from tandem.cli.bench_serve.apis import Asking, body_of
from tandem.cli.bench_serve.choices import Api, WorkloadName
from tandem.cli.bench_serve.client import Target, ask, resolved, target_of
from tandem.cli.bench_serve.numbers import Outcome, Slo, flat, summarize
from tandem.cli.bench_serve.workload import Question, shaped, synthetic, token_ids
from tests.support.system.system import running_system

VOCABULARY: Final = 1000
MOCK: Final = ("prefill_us_per_token=100", "decode_us_per_step=10000")
SGLANG: Final = ("max_total_tokens=32768", "disable_radix_cache=true")
"""Without its prefix cache, or the second of a pair would find the prompt of the first."""
ENGINES: Final = {"mock": MOCK, "sglang": SGLANG}
NAMES: Final = {
    f"{name}.{ours}": f"{theirs}_{name.replace('e2e', 'e2e_latency')}"
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
    for ours, theirs in (("mean", "mean"), ("p50", "median"), ("p90", "p90"))
}
MOST_APART: Final = 0.03


@dataclass
class Found:
    """What both clients saw."""

    ours: list[Outcome] = field(default_factory=list)
    theirs: list[Any] = field(default_factory=list)
    """RequestFuncOutput of SGLang."""


def sglang_client() -> Any:
    """The module with SGLang's clients and their sums."""
    if find_spec("datasets") is None:
        sys.modules["datasets"] = types.SimpleNamespace(load_dataset=None)  # type: ignore[assignment]
    import sglang.benchmark.serving as serving

    serving.set_global_args(
        argparse.Namespace(disable_stream=False, disable_ignore_eos=False, return_logprob=False, header=None)
    )
    return serving


class Words:
    """In place of a tokenizer: SGLang counts the words of answers again, and nothing is made of it here."""

    def encode(self, text: str, **_: Any) -> list[str]:
        """Anything with a length."""
        return text.split()


async def our_way(target: Target, asking: Asking, question: Question) -> Outcome:
    """One request of `tandem bench serve`."""
    answer = await ask(target, body_of(asking, question), 60)
    return Outcome(
        at_s=answer.sent_s,
        sent_s=answer.sent_s,
        ended_s=answer.ended_s,
        asked_tokens=question.new_tokens,
        error=answer.error,
        ttft_ms=answer.ttft_ms,
        gaps_ms=tuple(answer.gaps_ms),
        new_tokens=answer.new_tokens,
    )


async def their_way(serving: Any, url: str, model: str, question: Question) -> Any:
    """One request of bench_serving."""
    ids = [token for piece in question.pieces for token in token_ids(piece, VOCABULARY)]
    return await serving.async_request_openai_completions(
        serving.RequestFuncInput(
            prompt=ids,
            api_url=f"{url}/v1/completions",
            prompt_len=len(ids),
            output_len=question.new_tokens,
            model=model,
            lora_name="",
            image_data=None,
            extra_request_body={},
        )
    )


async def measure(serving: Any, url: str, model: str, pairs: int, prompt_tokens: int, new_tokens: int) -> Found:
    """Every pair but the first two, which warm up."""
    shape = shaped(WorkloadName.RANDOM, prompt_tokens, new_tokens, None)
    asking = Asking(Api.COMPLETIONS, model, VOCABULARY)
    target, found = await resolved(target_of(url, Api.COMPLETIONS)), Found()
    for number, question in enumerate(islice(synthetic(shape, 0, np.random.default_rng(0)), pairs + 2)):
        if number % 2:
            theirs, ours = await their_way(serving, url, model, question), await our_way(target, asking, question)
        else:
            ours, theirs = await our_way(target, asking, question), await their_way(serving, url, model, question)
        if ours.error or not theirs.success:
            raise SystemExit(f"a request failed: {ours.error or theirs.error}")
        if number >= 2:
            found.ours.append(ours)
            found.theirs.append(theirs)
    return found


def table(serving: Any, found: Found) -> tuple[str, float]:
    """The numbers side by side, and how far the two are apart at most."""
    ours = flat(summarize(found.ours, Slo()))
    theirs, _ = serving.calculate_metrics(None, found.theirs, 1.0, Words(), "sglang-oai")
    lines, worst = [f"{'':<14}{'bench_serving':>14}{'tandem':>12}{'ratio':>9}"], 0.0
    for name, name_there in NAMES.items():
        value = float(getattr(theirs, name_there))
        ratio = ours[name] / value
        worst = max(worst, abs(ratio - 1))
        lines.append(f"{name:<14}{value:>14.2f}{ours[name]:>12.2f}{ratio:>9.3f}")
    return "\n".join(lines), worst


def main() -> int:
    """Command line; returns the exit code: 1 if a number is more than 3 % apart."""
    parser = argparse.ArgumentParser(description="tandem bench serve beside SGLang's bench_serving.")
    parser.add_argument("--server", default="mock", choices=ENGINES)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=48)
    given = parser.parse_args()
    serving = sglang_client()
    options = ["--engine", given.server, *(part for one in ENGINES[given.server] for part in ("--engine-arg", one))]
    with tempfile.TemporaryDirectory() as folder, running_system(Path(folder), *options) as system:
        began = time.monotonic()
        run = measure(serving, system.url, system.state.model, given.pairs, given.prompt_tokens, given.new_tokens)
        found = asyncio.run(run)
        text, worst = table(serving, found)
        print(f"{given.pairs} pairs in {time.monotonic() - began:.0f} s\n{text}\nat most {worst:.1%} apart")
    return int(worst > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
