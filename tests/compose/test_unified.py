"""Unified workers in containers: SGLang's, un-disaggregated, by itself; and beside a pair of the same engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tandem.cli.cluster import set_draining
from tests.support.docker.cluster import BOOTSTRAP_PORT, Cluster
from tests.support.docker.stack import Stack, running
from tests.support.docker.wheels import torch_wheel
from tests.support.system.asking import generate, prompt_of, seen_draining, streamed

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

NEW_TOKENS = 16
SHORT, LONG = prompt_of(40, 40), prompt_of(300, 300)
"""Of at most TANDEM_GATEWAY_UNIFIED_MAX_PROMPT_TOKENS, 256, and of more."""
PROMPTS = [prompt_of(5, 5), SHORT, LONG]


@pytest.fixture(scope="module")
def wheels(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where PyTorch for SGLang's images is, once one was built."""
    return tmp_path_factory.mktemp("wheels")


async def test_it_answers_by_itself_prompts_of_any_length(wheels: Path, tmp_path: Path) -> None:
    with built(wheels, "unified") as stack:
        cluster = Cluster.of(stack, tmp_path)
        (name,) = await cluster.members(1)
        assert name.startswith("unified")
        async with stack.client() as client:
            for prompt in PROMPTS:
                whole = await generate(client, prompt, NEW_TOKENS, ignore_eos=True)
                assert len(whole.tokens) == NEW_TOKENS
                assert (await streamed(client, prompt, NEW_TOKENS, ignore_eos=True)).tokens == whole.tokens
        await cluster.wait_succeeded("unified", 2 * len(PROMPTS))


@pytest.mark.parametrize("profiles", ["mock,unified-mock", "sglang-cpu,unified"])
async def test_beside_a_pair_it_gets_the_short_prompts_and_both_say_the_same(
    wheels: Path, tmp_path: Path, profiles: str
) -> None:
    with built(wheels, profiles) as stack:
        cluster = Cluster.of(stack, tmp_path)
        names = {one.partition("-")[0]: one for one in await cluster.members(3)}
        said = {}
        async with stack.client() as client:
            for role, prompt in (("unified", SHORT), ("decode", LONG)):
                said[role] = (await generate(client, prompt, NEW_TOKENS, ignore_eos=True)).tokens
                assert len(said[role]) == NEW_TOKENS
                await cluster.wait_succeeded(role, 1)
            bootstrap, credentials = cluster.dial("bootstrap", BOOTSTRAP_PORT)
            for role, other, prompt in (("unified", "decode", SHORT), ("decode", "unified", LONG)):
                await set_draining(bootstrap, names[role], draining=True, credentials=credentials)
                await seen_draining(client, role, 1)
                assert (await generate(client, prompt, NEW_TOKENS, ignore_eos=True)).tokens == said[role]
                await cluster.wait_succeeded(other, 2)
                await set_draining(bootstrap, names[role], draining=False, credentials=credentials)
                await seen_draining(client, role, 0)


@contextmanager
def built(wheels: Path, profiles: str) -> Iterator[Stack]:
    """A stack of the images of this checkout."""
    stack = Stack(profiles, **({} if "mock" in profiles else {"WHEELS_DIR": str(torch_wheel(wheels))}))
    stack.build()
    with running(stack):
        yield stack
