"""A link whose peer goes while it is being opened leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tandem.engine.rank import hello
from tandem.v1 import kv_link_pb2
from tests.support.rank.pair import DECODE, PREFILL, Pair, pair

pytestmark = pytest.mark.timeout(60)


class GonePeer:
    """A call whose peer has gone when the answer is ready: gRPC cancels it in the midst of the write."""

    async def write(self, response: kv_link_pb2.LinkResponse) -> None:
        """Is cancelled."""
        raise asyncio.CancelledError


async def requests(ranks: Pair) -> AsyncIterator[kv_link_pb2.LinkRequest]:
    """Decode's Hello, and nothing after it."""
    setup, agent = ranks.decode.agent.setup, ranks.decode.agent
    ours = hello.hello(setup.settings.protocol, DECODE, PREFILL, setup.rank, setup.layout, agent.endpoint.offer())
    yield kv_link_pb2.LinkRequest(hello=ours)
    await asyncio.Event().wait()


async def test_a_peer_that_goes_before_the_answer_leaves_no_link() -> None:
    async with pair() as ranks:
        listener = ranks.prefill.agent._listener
        assert listener is not None
        with pytest.raises(asyncio.CancelledError):
            await listener.Link(requests(ranks), GonePeer())
        assert not listener._links
        await ranks.open_echo()  # and another one can be opened
