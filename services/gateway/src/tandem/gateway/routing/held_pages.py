"""What the prefix caches of the workers hold: each worker is followed while a policy of its role goes by that."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import grpc

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Role
from tandem.core.kv_index import NOTHING_HELD, KvIndex, KvMatch
from tandem.core.policies import BY_HELD_PAGES, PolicyName
from tandem.core.prompt_pages import PromptPages
from tandem.gateway.routing.sessions import STUBS
from tandem.rpc import held_pages
from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)


class Holders(Protocol):
    """Who holds what of a prompt; see HeldPages."""

    def serve(self, policies: Mapping[Role, PolicyName]) -> None:
        """Sets the policies that will ask."""

    def match(self, pages: PromptPages) -> KvMatch:
        """Who holds how many of the first pages of a prompt."""


class NobodyHolds:
    """No worker is known to hold anything."""

    def serve(self, policies: Mapping[Role, PolicyName]) -> None:
        """Nothing to prepare."""

    def match(self, pages: PromptPages) -> KvMatch:
        """Nobody."""
        return NOTHING_HELD


class HeldPages:
    """The index, and what feeds it. Everything runs on one loop."""

    def __init__(self, max_pages: int, rng: random.Random) -> None:
        """max_pages: most pages over all workers; see KvIndex."""
        self.index = KvIndex(max_pages)
        self._rng = rng
        self._asked: tuple[PromptPages | None, int] = (None, 0)
        self._matched = NOTHING_HELD
        """The last answer, and to what."""
        self._wanted = {role: asyncio.Event() for role in Role}

    def serve(self, policies: Mapping[Role, PolicyName]) -> None:
        """Sets the policies: of a role whose policy does not go by what is held, nothing more is learnt."""
        for role, policy in policies.items():
            if policy in BY_HELD_PAGES:
                self._wanted[role].set()
            else:
                self._wanted[role].clear()

    def match(self, pages: PromptPages) -> KvMatch:
        """Who holds how much of the beginning of a prompt, as far as is known. The very same pages again cost
        nothing, as for the other role of a pair."""
        asked = (pages, self.index.changes)
        if self._asked != asked:
            self._asked, self._matched = asked, self.index.match(pages.runs())
        return self._matched

    async def follow(self, info: WorkerInfo, channel: grpc.aio.Channel) -> None:
        """Follows one worker until cancelled; what it held is forgotten with that."""
        stub = STUBS[info.role](channel)
        backoff = Backoff(BackoffPolicy(max_ms=10_000), self._rng)
        while True:
            await self._wanted[info.role].wait()
            try:
                with suppress(grpc.aio.AioRpcError):
                    await self._learn(info, stub.WatchHeldPages(session_pb2.WatchHeldPagesRequest()), backoff)
            finally:
                self.index.forget(info.life)
            await asyncio.sleep(backoff.next_ms() / 1000)

    async def _learn(self, info: WorkerInfo, call: Any, backoff: Backoff) -> None:
        try:
            async for response in call:
                if not self._wanted[info.role].is_set():
                    return
                if not self.index.apply(info.life, held_pages.from_proto(response.change)):
                    log.warning("news of what %s holds were missed: it is followed anew", info.life)
                    return
                backoff.reset()
        finally:
            call.cancel()
