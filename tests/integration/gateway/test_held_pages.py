"""What a gateway knows of prefix caches, over real gRPC: who is followed, when, and what becomes of what was known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Role, WorkerLife
from tandem.core.kv_index import KvChange, KvIndex, PageHash
from tandem.core.kv_log import KvLog
from tandem.core.policies import PolicyName
from tandem.engine.worker.held_pages import HeldPagesFeeds
from tandem.gateway.routing.held_pages import HeldPages
from tandem.rpc import held_pages
from tandem.rpc.client import open_channel
from tandem.rpc.server import GrpcServer
from tandem.v1 import prefill_pb2_grpc, session_pb2
from tests.support.bootstrap.workers import worker

WAIT_S = 30
AWARE = {Role.PREFILL: PolicyName.CACHE_AWARE, Role.DECODE: PolicyName.LEAST_LOAD}
BLIND = dict.fromkeys(Role, PolicyName.LEAST_LOAD)


def pages(*numbers: int) -> tuple[PageHash, ...]:
    return tuple(map(PageHash, numbers))


class Holder(prefill_pb2_grpc.PrefillServiceServicer):
    """A worker that does nothing but hold pages; `disturb` lets it say something wrong."""

    def __init__(self) -> None:
        self.log = KvLog(1000)
        self.feeds = HeldPagesFeeds(2)
        self.calls = 0
        self.open = 0
        self.changed = asyncio.Condition()
        self.disturb: Callable[[session_pb2.HeldPagesChange], None] = lambda _: None

    async def WatchHeldPages(self, request: Any, context: Any) -> AsyncIterator[session_pb2.WatchHeldPagesResponse]:  # noqa: N802
        await self._count(1)
        try:
            async with aclosing(self.feeds.follow(self.log, asyncio.Event())) as changes:
                async for change in changes:
                    self.disturb(change)
                    yield session_pb2.WatchHeldPagesResponse(change=change)
        finally:
            await self._count(-1)

    async def _count(self, more: int) -> None:
        async with self.changed:
            self.open += more
            self.calls += max(0, more)
            self.changed.notify_all()

    async def until(self, true: Callable[[Holder], bool]) -> None:
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: true(self))


class NotingIndex(KvIndex):
    """Says when it changes."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.changed = asyncio.Event()

    def apply(self, life: WorkerLife, change: KvChange) -> bool:
        self.changed.set()
        return super().apply(life, change)

    def forget(self, life: WorkerLife) -> None:
        self.changed.set()
        super().forget(life)


@dataclass
class Followed:
    """A worker, and a gateway's part that follows it."""

    holder: Holder
    held: HeldPages
    index: NotingIndex
    info: WorkerInfo
    task: asyncio.Task[None]

    async def depth(self, wanted: int, *numbers: int) -> None:
        """Returns once the worker is known to hold so many of the first pages of a prompt."""
        async with asyncio.timeout(WAIT_S):
            while self.index.match([pages(*numbers)]).pages_of(self.info.life) != wanted:
                await self.index.changed.wait()
                self.index.changed.clear()


@pytest.fixture
async def followed() -> AsyncIterator[Followed]:
    server, holder = GrpcServer(), Holder()
    server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, holder, "tandem.v1.PrefillService")
    address = server.bind("127.0.0.1:0")
    await server.start()
    info = replace(worker("p0", Role.PREFILL, incarnation=1), address=address)
    held = HeldPages(1000, random.Random(1))
    held.index = index = NotingIndex()
    async with open_channel(address) as channel:
        task = asyncio.create_task(held.follow(info, channel))
        yield Followed(holder, held, index, info, task)
        task.cancel()
        await asyncio.wait({task})
    await server.stop(0)


async def test_nobody_is_followed_until_a_policy_of_its_role_asks(followed: Followed) -> None:
    followed.holder.log.store(pages(1, 2))
    followed.held.serve(BLIND)
    followed.held.serve({Role.PREFILL: PolicyName.LEAST_LOAD, Role.DECODE: PolicyName.CACHE_AWARE})
    await asyncio.sleep(0)
    assert followed.holder.calls == 0
    followed.held.serve(AWARE)
    await followed.depth(2, 1, 2, 3)
    followed.held.serve(BLIND)
    followed.holder.log.store(pages(3))
    await followed.holder.until(lambda holder: holder.open == 0)
    await followed.depth(0, 1)
    assert followed.held.index.entries == 0


async def test_what_comes_and_goes_is_known_and_a_flushed_cache_too(followed: Followed) -> None:
    followed.held.serve(AWARE)
    log = followed.holder.log
    log.store(pages(1, 2, 3))
    await followed.depth(3, 1, 2, 3)
    log.remove(pages(3))
    await followed.depth(2, 1, 2, 3)
    log.clear()
    await followed.depth(0, 1)
    log.store(pages(*range(200)))
    await followed.depth(200, *range(200))
    assert followed.holder.calls == 1


async def test_after_news_were_missed_it_is_asked_anew(followed: Followed) -> None:
    followed.held.serve(AWARE)
    followed.holder.log.store(pages(1))
    await followed.depth(1, 1)

    def skip(change: session_pb2.HeldPagesChange) -> None:
        change.sequence += 1
        followed.holder.disturb = lambda _: None

    followed.holder.disturb = skip
    followed.holder.log.store(pages(2))
    await followed.holder.until(lambda holder: holder.calls == 2)
    await followed.depth(2, 1, 2)
    assert followed.held.index.gaps == 1


async def test_what_a_worker_held_is_forgotten_with_it(followed: Followed) -> None:
    followed.held.serve(AWARE)
    followed.holder.log.store(pages(1))
    await followed.depth(1, 1)
    followed.task.cancel()
    await asyncio.wait({followed.task})
    assert followed.held.index.entries == 0
    await followed.holder.until(lambda holder: holder.open == 0)


async def test_a_worker_of_a_former_release_holds_nothing_and_harms_nobody() -> None:
    server = GrpcServer()
    server.add(
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server,
        prefill_pb2_grpc.PrefillServiceServicer(),
        "tandem.v1.PrefillService",
    )
    address = server.bind("127.0.0.1:0")
    await server.start()
    held = HeldPages(1000, random.Random(1))
    held.serve(AWARE)
    async with open_channel(address) as channel:
        task = asyncio.create_task(held.follow(worker("p0", Role.PREFILL), channel))
        done, _ = await asyncio.wait({task}, timeout=0.2)
        assert not done
        task.cancel()
        await asyncio.wait({task})
    await server.stop(0)


async def test_only_so_many_may_follow_and_one_that_leaves_makes_place() -> None:
    feeds, log = HeldPagesFeeds(1), KvLog(10)
    log.store(pages(1))
    first = feeds.follow(log, asyncio.Event())
    assert (await anext(first)).cleared
    with pytest.raises(Exception, match="already"):
        await anext(feeds.follow(log, asyncio.Event()))
    await first.aclose()
    again = feeds.follow(log, asyncio.Event())
    assert list((await anext(again)).stored) == [1]
    await again.aclose()


def test_changes_keep_what_they_say_on_their_way() -> None:
    for change in (KvChange(7, pages(1, 2**64 - 1), pages(3), cleared=False), KvChange(0, cleared=True)):
        assert held_pages.from_proto(held_pages.to_proto(change)) == change
