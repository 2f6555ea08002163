"""Prefill's side of links: serves KvLinkService, one stream per decode rank."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import LinkEpoch, RankId, WorkerLife
from tandem.core.room.events import Why
from tandem.engine.rank import hello, wire
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.offers import OfferCollector
from tandem.engine.rank.pools import PoolMap
from tandem.rdma.api import LaneEvent
from tandem.rpc import convert
from tandem.rpc.server import GrpcServer
from tandem.rpc.streams import first_of
from tandem.v1 import kv_link_pb2, kv_link_pb2_grpc

if TYPE_CHECKING:
    from tandem.engine.rank.agent import RankAgent

log = logging.getLogger(__name__)

_SERVICE = "tandem.v1.KvLinkService"


class Listener(kv_link_pb2_grpc.KvLinkServiceServicer):
    """Accepts links and reads them."""

    def __init__(self, agent: RankAgent) -> None:
        self._agent = agent
        self._settings = agent.setup.settings
        self._server: GrpcServer | None = None
        self._epochs = itertools.count(1)
        self._links: dict[tuple[WorkerLife, RankId], KvLink] = {}

    async def start(self) -> str:
        """Listens; returns host:port that peers dial."""
        self._server = GrpcServer(credentials=self._agent.credentials)
        self._server.add(kv_link_pb2_grpc.add_KvLinkServiceServicer_to_server, self, _SERVICE)
        bound = self._server.bind(f"{self._settings.bind_host}:0")
        await self._server.start()
        await self._server.set_ready(True)
        return f"{self._settings.host}:{bound.rpartition(':')[2]}"

    async def close(self, why: Why) -> None:
        """Ends every link and stops listening."""
        for link in list(self._links.values()):
            await self._agent.link_down(link, why)
        if self._server is not None:
            await self._server.stop(grace_ms=200)

    def peer_gone(self, life: WorkerLife, why: Why) -> None:
        """Ends the links of one life of a peer."""
        for (peer, _), link in list(self._links.items()):
            if peer == life:
                self._agent.spawn(self._agent.link_down(link, why), f"peer {life} gone")

    async def Link(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[kv_link_pb2.LinkRequest], context: Any
    ) -> None:
        """One link, from its Hello to its end."""
        link, answer = await self._open(request_iterator)
        key = (link.peer, link.peer_rank)
        older, self._links[key] = self._links.get(key), link
        try:
            if older is not None:
                await self._agent.link_down(older, Why(ErrorReason.LINK_LOST, f"{link.peer} opened a newer link"))
            await context.write(kv_link_pb2.LinkResponse(link_epoch=link.epoch, hello=answer))
            self._agent.link_up(link)
            await link.live(
                self._read(link, request_iterator),
                context.write,
                ping_interval_ms=self._settings.ping_interval_ms,
                ping_timeout_ms=self._settings.ping_timeout_ms,
                ask=False,
            )
        finally:
            if self._links.get(key) is link:
                del self._links[key]
            why = link.down or Why(ErrorReason.LINK_LOST, f"the link to {link.peer} broke")
            await asyncio.shield(asyncio.ensure_future(self._agent.link_down(link, why)))

    async def _open(self, requests: AsyncIterator[kv_link_pb2.LinkRequest]) -> tuple[KvLink, kv_link_pb2.LinkHello]:
        setup = self._agent.setup
        async with asyncio.timeout(self._settings.dial_timeout_ms / 1000):
            first = await first_of(requests, "a link starts with Hello")
            ours = await self._agent.wait_identified()
        if first.WhichOneof("message") != "hello":
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a link starts with Hello")
        protocol = setup.settings.protocol
        peer, features = hello.check(first.hello, protocol, ours, setup.rank, setup.layout)
        layout = convert.layout_from_proto(first.hello.layout)
        epoch = LinkEpoch(next(self._epochs))
        rank = convert.rank_from_proto(first.hello.rank)
        link = KvLink(peer, rank, epoch, kv_link_pb2.LinkResponse, PoolMap(layout), self._settings.outbox_limit)
        link.features = features

        def on_event(event: LaneEvent) -> None:
            self._agent.on_lane_event(link, event)

        offers = [wire.provider_of(offer) for offer in first.hello.providers]
        accepted = self._agent.endpoint.accept(offers, on_event)
        link.sender_lane = self._agent.staging.over(accepted.lane)
        log.info("%s (%s) gets provider %s: %s", peer, rank, accepted.answer.name, accepted.answer.reason)
        answer = hello.hello(
            protocol,
            ours,
            peer,
            setup.rank,
            setup.layout,
            [accepted.answer],
            epoch=epoch,
            offer_credit=self._settings.offer_credit,
        )
        return link, answer

    async def _read(self, link: KvLink, requests: AsyncIterator[kv_link_pb2.LinkRequest]) -> None:
        agent = self._agent
        offers = OfferCollector(
            agent.counters, self._settings.park_timeout_ms, functools.partial(agent.refuse_offer, link)
        )
        try:
            async for request in requests:
                link.heard()
                if request.link_epoch == link.epoch:
                    self._take(link, request, offers)
                else:
                    agent.counters.stale_messages += 1
        finally:
            offers.close()

    def _take(self, link: KvLink, request: kv_link_pb2.LinkRequest, offers: OfferCollector) -> None:
        match request.WhichOneof("message"):
            case "offer":
                if (offer := offers.add(request.offer)) is not None:
                    self._agent.on_offer(link, offer)
            case "landed":
                self._agent.on_landed(link, request.landed)
            case "abort":
                offers.drop(request.abort.room)
                self._agent.on_abort(link, request.abort)
            case "abort_ack":
                self._agent.on_abort_ack(link, request.abort_ack)
            case "ping":
                link.answer_ping(request.ping)
            case _:
                self._agent.counters.stale_messages += 1
