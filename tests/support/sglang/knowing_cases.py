"""SGLang's own test cases with a worker that knows the answers: `python -m tests.support.sglang.knowing_cases`.

With `--from` its test files are run instead of the kits of the installed package. Needs no engine. A case that fails
here fails for what the gateway makes of requests and answers; one that passes here and fails with a whole system fails
for what the system's model says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tandem.core.ids import Role
from tests.support.gateway import fake_worker
from tests.support.gateway.cluster import MODEL_PATH, cluster
from tests.support.gateway.fake_worker import FakeWorker, hand_over
from tests.support.sglang.knowing import KnowingModel

ROOT: Final = Path(__file__).resolve().parents[3]
MODEL: Final = str(MODEL_PATH)
CONTEXT_TOKENS: Final = 32_768
FORMS: Final = {
    "llama3": ("TestToolChoiceLlama32.", "TestOpenAIServerFunctionCalling.", "TestAnthropicToolUse."),
    "qwen25": ("TestToolChoiceQwen25.",),
    "mistral": ("TestToolChoiceMistral.",),
    "lfm2": ("TestToolChoiceLfm2.",),
    "pythonic": ("TestOpenAIPythonicFunctionCalling.",),
}
"""Parsers of tool calls, and the classes of cases that start their server with them."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run."""

    cases: dict[str, tuple[str, str]]
    """Outcome and reason of each."""
    disallowed: tuple[str, ...]
    """What the worker had to say that the gateway's grammar does not allow."""


async def outcomes(parser: str, *words: str) -> Found:
    """Runs cases with a worker of one kind. words: options of `tools.sglang_kits` that choose cases."""
    model = KnowingModel(parser)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_worker, "CONTEXT_TOKENS", CONTEXT_TOKENS)
        found = Path(folder) / "found.json"
        async with cluster((), (), tool_call_parser=parser) as now:
            pair = [
                FakeWorker("p0", Role.PREFILL, hand_over, MODEL),
                FakeWorker("d0", Role.DECODE, model.answer, MODEL),
            ]
            for one in pair:
                await one.start(now.bootstrap)
            await now.wait_ready()
            url = ("--url", f"http://{now.gateway.http_address}", "--model", MODEL, "--json", str(found))
            command = (sys.executable, "-m", "tools.sglang_kits", *url, *words)
            running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
            await running.wait()
            for one in pair:
                await one.die()
        return Found(json.loads(found.read_text()), tuple(model.disallowed))


async def run(files: Sequence[str], only: Sequence[str]) -> int:
    """Prints what does not pass, and a count."""
    chosen = [word for one in only for word in ("--only", one)]
    counts: Counter[str] = Counter()
    for parser, classes in FORMS.items() if files else [("llama3", ())]:
        narrowed = chosen or [word for one in classes for word in ("--only", one)]
        named = ["--no-kits", *(word for one in files for word in ("--from", one))] if files else []
        found = await outcomes(parser, *named, *narrowed)
        for name, (outcome, why) in found.cases.items():
            counts[outcome] += 1
            print(f"{parser:10}{outcome:6}{name}  {why}", flush=True)
        for text in found.disallowed:
            print(f"{parser:10}no grammar of the gateway's allows {text}", flush=True)
    print(dict(counts))
    return int(bool(counts["fail"] or counts["error"]))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="SGLang's own test cases with a worker that knows the answers.")
    parser.add_argument("--from", dest="files", action="append", default=[], help="test files of SGLang")
    parser.add_argument("--only", action="append", default=[], help="only cases with this in their name; repeatable")
    given = parser.parse_args()
    return asyncio.run(run(given.files, given.only))


if __name__ == "__main__":
    sys.exit(main())
