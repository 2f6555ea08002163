"""Workers come and go, and everything is started again one by one, while clients ask: no request fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.docker.clients import asking
from tests.support.docker.cluster import Cluster
from tests.support.docker.stack import Stack, running
from tests.support.faults.load import Outcome
from tests.support.mock.oracle import Oracle

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

MORE = 8
"""Answers that are waited for after each step."""


@pytest.fixture(scope="module")
def stack(images: None) -> Iterator[Stack]:
    """One prefill and one decode worker behind two gateways."""
    with running(Stack(), gateway=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Its services."""
    return Cluster.of(stack, tmp_path_factory.mktemp("certs"))


async def test_workers_come_and_go_under_load(stack: Stack, cluster: Cluster, oracle: Oracle) -> None:
    async with asking(stack.gateways, oracle, seed=1) as clients:
        await clients.more(MORE)
        await asyncio.to_thread(stack.up, prefill=2, decode=3, gateway=2)
        before = await cluster.members(5)
        await clients.more(5 * MORE)
        after = await cluster.members(5)
        await asyncio.to_thread(stack.up, gateway=2)
        await cluster.members(2)
        await clients.more(MORE)
    submitted = {name: member.status.submitted for name, member in before.items() if member.status is not None}
    assert {name for name, one in after.items() if one.status and one.status.submitted > submitted[name]} == set(after)
    assert not clients.failures(), clients.failures()


@pytest.mark.parametrize("service", ["bootstrap", "prefill-mock", "decode-mock", "gateway"])
async def test_a_rolling_restart_loses_no_request(stack: Stack, cluster: Cluster, oracle: Oracle, service: str) -> None:
    await asyncio.to_thread(stack.up, prefill=2, decode=2, gateway=2)
    async with asking(stack.gateways, oracle, seed=2) as clients:
        await clients.more(MORE)
        for container in stack.containers(service):
            await asyncio.to_thread(stack.restart, container)
            await cluster.wait_workers(4)
            await clients.more(MORE)
    assert not clients.failures(), clients.failures()
    assert clients.count(Outcome.ANSWERED) == len(clients.ended)
    if service != "gateway":
        assert clients.tried_again == 0
