"""The examples with OpenAI's client, as processes against a system with the mock engine."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.settings import environment
from tests.support.system.inside import Inside, system_inside

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
WAIT_S = 90

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
async def system() -> AsyncIterator[Inside]:
    async with system_inside() as running:
        yield running


async def example(name: str, system: Inside, *words: str, path: str = "/v1") -> str:
    """What an example prints; this loop, on which the system runs, goes on."""
    url = f"http://{system.gateway.http_address}{path}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), "--url", url, "--api-key", "open sesame", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_examples(system: Inside) -> None:
    streamed = await example("streaming.py", system, "Hello", "--max-tokens", "5")
    found = re.search(r"\n\n(\d+) tokens from tandem-tiny; the first text came after (\d+) ms\n$", streamed)
    assert found is not None, streamed
    assert 1 <= int(found[1]) <= 5
    assert streamed[: found.start()].strip()

    batch = await example("batch.py", system, "One", "Two", "--max-tokens", "4", "--at-once", "1")
    together = re.findall(r"in one request  (.*)", batch)
    apart = re.findall(r"by itself       (.*)", batch)
    assert len(together) == len(apart) == 2
    assert together == apart, "the mock is deterministic"
    assert "Error" not in batch


async def test_the_frontend_language(system: Inside) -> None:
    said = await example("frontend_language.py", system, "tea", "rain", "--max-tokens", "5", path="")
    streamed, *rated = re.split(r"\n\n(?=tea: )|\n(?=rain: )", said.strip())
    assert streamed.startswith("Here is a sentence about tea: "), said
    sentence = re.fullmatch(r"tea: (.*), rated .*", rated[0])
    assert sentence is not None, said
    assert ast.literal_eval(sentence[1]) in streamed, "the mock is deterministic"
    assert re.fullmatch(r"rain: .+, rated .+", rated[1]), said
