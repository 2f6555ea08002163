"""The system in containers, with the mock engine: answers, traffic for every worker, a killed worker, a clean end."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator

import pytest

from tests.support.docker.stack import Stack
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import Answer, generate_all
from tests.support.system.mock_oracle import tiny_oracle

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1_500)]

NEW_TOKENS = 12
USER = "10001:10001"


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """Foretells the mock."""
    return tiny_oracle()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One prefill and one decode worker. Whatever happens, nothing of it stays."""
    stack = Stack(f"tandem-test-{secrets.token_hex(4)}")
    try:
        stack.build()
        stack.up()
        yield stack
    finally:
        stack.down()


async def ask(stack: Stack, oracle: Oracle, seed: int, count: int) -> None:
    """Sends prompts, eight at once, and compares each answer with the oracle's."""
    dice = random.Random(seed)
    prompts = [[dice.randrange(3, 1000) for _ in range(dice.randrange(1, 100))] for _ in range(count)]
    async with stack.client() as client:
        answers: list[Answer] = await generate_all(client, prompts, NEW_TOKENS, at_once=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = oracle.predict(prompt, NEW_TOKENS)
        assert (answer.tokens, answer.text) == (wanted.tokens, wanted.text), f"a prompt of {len(prompt)} tokens"


async def test_answers_are_those_of_the_oracle(stack: Stack, oracle: Oracle) -> None:
    await ask(stack, oracle, seed=1, count=16)


async def test_the_image_has_the_dashboard(stack: Stack) -> None:
    async with stack.client() as client:
        for path in ("/dashboard", "/dashboard/dashboard.js", "/dashboard/dashboard.css"):
            assert (await client.get(path)).status_code == 200, path


def test_kv_travels_over_tcp_between_containers_and_the_log_says_why(stack: Stack) -> None:
    links = [link for worker in stack.workers(2).values() for link in worker.links]
    assert len(links) == 2
    assert all(link.endswith("=tcp") for link in links)
    assert "gets provider tcp: not cma: the two processes do not share host" in stack.compose("logs", "prefill-mock")


def test_only_the_gateway_is_published_and_only_on_loopback(stack: Stack) -> None:
    published = {}
    for container in stack.containers():
        found = stack.inspect(container)
        ports = found["NetworkSettings"]["Ports"]
        published[found["Config"]["Labels"]["com.docker.compose.service"]] = {
            binding["HostIp"] for bindings in ports.values() for binding in bindings or ()
        }
    assert published == {"bootstrap": set(), "gateway": {"127.0.0.1"}, "prefill-mock": set(), "decode-mock": set()}


def test_containers_may_do_little(stack: Stack) -> None:
    for container in stack.containers():
        found = stack.inspect(container)
        assert found["Config"]["User"] == USER
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in found["HostConfig"]["SecurityOpt"]
        assert found["HostConfig"]["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}


async def test_every_worker_of_a_larger_system_gets_traffic(stack: Stack, oracle: Oracle) -> None:
    stack.up(prefill=2, decode=3)
    before = stack.workers(5)
    await ask(stack, oracle, seed=2, count=60)
    after = stack.workers(5)
    assert {name for name in after if after[name].submitted > before[name].submitted} == set(after)


async def test_a_killed_worker_is_done_without_and_comes_back_under_its_name(stack: Stack, oracle: Oracle) -> None:
    stack.up(prefill=2, decode=3)
    names = set(stack.workers(5))
    victim = stack.containers("decode-mock")[0]
    host = stack.kill(victim)
    await ask(stack, oracle, seed=3, count=24)
    assert set(stack.workers(4)) == names - {f"decode-{host}"}
    stack.start(victim)
    assert set(stack.workers(5)) == names
    await ask(stack, oracle, seed=4, count=8)


def test_down_leaves_nothing_behind(stack: Stack) -> None:
    stack.up()
    assert stack.left_over()
    stack.down()
    assert not stack.left_over()
