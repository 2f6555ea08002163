"""Containers are killed, frozen and cut off while clients ask: no wrong answer, and all works again by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.support.docker.clients import Clients, asking
from tests.support.docker.cluster import Cluster
from tests.support.docker.stack import Stack, disconnected, paused, running
from tests.support.faults.load import CONNECTION, Outcome
from tests.support.mock.oracle import Oracle

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

SERVICES = ("bootstrap", "prefill-mock", "decode-mock", "gateway")
HOLD_S = 3.5
"""How long a container is frozen or cut off: longer than a lease."""
MORE = 8
"""Answers that are waited for before and after."""
WORKERS = 4


@pytest.fixture(scope="module")
def stack(images: None) -> Iterator[Stack]:
    """Two workers of each role, so that each can be done without."""
    with running(Stack(), prefill=2, decode=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Its services."""
    return Cluster.of(stack, tmp_path_factory.mktemp("certs"))


def judge(clients: Clients, *allowed: str) -> None:
    """No answer was wrong, none is missing, and none failed but for these reasons."""
    assert clients.count(Outcome.WRONG) == clients.count(Outcome.HUNG) == 0, clients.failures()
    assert set(clients.failures()) <= set(allowed), clients.failures()


@pytest.mark.parametrize("service", SERVICES)
async def test_killed_and_started_again(stack: Stack, cluster: Cluster, oracle: Oracle, service: str) -> None:
    async with asking(stack.gateways, oracle, seed=1) as clients:
        await clients.more(MORE)
        (victim, *_) = stack.containers(service)
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.wait)
        since = time.time()
        await asyncio.to_thread(victim.start)
        await asyncio.to_thread(stack.wait_healthy, victim, since)
        await cluster.wait_workers(WORKERS)
        await clients.more(MORE)
    # An answer that the only gateway had begun is lost with it.
    judge(clients, *([CONNECTION] if service == "gateway" else []))


@pytest.mark.parametrize("service", SERVICES)
async def test_frozen_for_a_while(stack: Stack, cluster: Cluster, oracle: Oracle, service: str) -> None:
    async with asking(stack.gateways, oracle, seed=2) as clients:
        await clients.more(MORE)
        (victim, *_) = stack.containers(service)
        with paused(victim):
            await asyncio.sleep(HOLD_S)
        await cluster.wait_workers(WORKERS)
        await clients.more(MORE)
    judge(clients)


@pytest.mark.parametrize("service", SERVICES)
async def test_cut_off_for_a_while(stack: Stack, cluster: Cluster, oracle: Oracle, service: str) -> None:
    async with asking(stack.gateways, oracle, seed=3) as clients:
        await clients.more(MORE)
        (victim, *_) = stack.containers(service)
        with disconnected(stack, victim):
            await asyncio.sleep(HOLD_S)
        await cluster.wait_workers(WORKERS)
        await clients.more(MORE)
    # No heartbeat has reached a bootstrap that was cut off, so for a moment it says that all workers have gone.
    judge(clients, *(["no_worker"] if service == "bootstrap" else []))
