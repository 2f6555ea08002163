"""The profile `unified` by itself: SGLang un-disaggregated on the CPU, which answers without any pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.docker.cluster import Cluster
from tests.support.docker.stack import Stack, running
from tests.support.docker.wheels import torch_wheel
from tests.support.system.asking import generate, prompt_of, streamed

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

NEW_TOKENS = 16
PROMPTS = [prompt_of(length, length) for length in (5, 40, 300)]


@pytest.fixture(scope="module")
def stack(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One unified worker."""
    stack = Stack("unified", WHEELS_DIR=str(torch_wheel(tmp_path_factory.mktemp("wheels"))))
    stack.build()
    with running(stack):
        yield stack


async def test_it_answers_by_itself_prompts_of_any_length(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster = Cluster.of(stack, tmp_path_factory.mktemp("certs"))
    (name,) = await cluster.members(1)
    assert name.startswith("unified")
    async with stack.client() as client:
        for prompt in PROMPTS:
            whole = await generate(client, prompt, NEW_TOKENS, ignore_eos=True)
            assert len(whole.tokens) == NEW_TOKENS
            assert (await streamed(client, prompt, NEW_TOKENS, ignore_eos=True)).tokens == whole.tokens
    await cluster.wait_succeeded("unified", 2 * len(PROMPTS))
