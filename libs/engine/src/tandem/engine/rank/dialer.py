"""Decode's side of links: dials prefill ranks, before they are needed where it can, and keeps the links up."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import LinkEpoch, WorkerLife
from tandem.core.room.events import Broken, Why
from tandem.engine.rank import hello, wire
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.pools import PoolMap
from tandem.engine.rank.receiver_room import ReceiverRoom
from tandem.rdma.api import LaneEvent
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.errors import from_rpc_error
from tandem.v1 import kv_link_pb2, kv_link_pb2_grpc

if TYPE_CHECKING:
    from tandem.engine.rank.agent import RankAgent

log = logging.getLogger(__name__)


class _Peer:
    """One life of one prefill rank: its link, if there is one, and the rooms that wait for it."""

    def __init__(self, life: WorkerLife, address: str) -> None:
        self.life = life
        self.address = address
        self.link: KvLink | None = None
        self.dialling = False
        self.waiting: list[ReceiverRoom] = []


class Dialer:
    """Dials on demand: a peer that joined, or a room that needs it."""

    def __init__(self, agent: RankAgent) -> None:
        self._agent = agent
        self._settings = agent.setup.settings
        self._peers: dict[tuple[WorkerLife, str], _Peer] = {}

    def identified(self) -> None:
        """The rank knows its life: what waited for that can be dialled."""
        for peer in self._peers.values():
            self._dial(peer)

    def joined(self, life: WorkerLife, address: str) -> None:
        """A prefill worker is there."""
        self._dial(self._peer(life, address))

    def want(self, life: WorkerLife, address: str, room: ReceiverRoom) -> None:
        """A room needs the link to a peer."""
        peer = self._peer(life, address)
        if peer.link is not None and peer.link.down is None:
            room.link_up(peer.link)
            return
        peer.waiting.append(room)
        self._dial(peer)

    def peer_gone(self, life: WorkerLife, why: Why) -> None:
        """A peer's life is over."""
        for key, peer in list(self._peers.items()):
            if key[0] == life:
                del self._peers[key]
                if peer.link is not None:
                    self._agent.spawn(self._agent.link_down(peer.link, why), f"peer {life} gone")

    async def close(self, why: Why) -> None:
        """Ends every link."""
        for peer in list(self._peers.values()):
            if peer.link is not None:
                await self._agent.link_down(peer.link, why)
        self._peers.clear()

    def _peer(self, life: WorkerLife, address: str) -> _Peer:
        return self._peers.setdefault((life, address), _Peer(life, address))

    def _dial(self, peer: _Peer) -> None:
        if self._agent.life is not None and not peer.dialling and (peer.link is None or peer.link.down is not None):
            peer.dialling = True
            self._agent.spawn(self._run(peer), f"link to {peer.life}")

    async def _run(self, peer: _Peer) -> None:
        """One link, from dialling to its end. A room that still waits when it fails, fails with it."""
        why = Why(ErrorReason.LINK_LOST, f"the link to {peer.life} broke")
        try:
            async with self._channel(peer) as channel:
                call = kv_link_pb2_grpc.KvLinkServiceStub(channel).Link()
                try:
                    await self._live(peer, call)
                finally:
                    call.cancel()
        except TandemError as error:
            why = wire.why_from(error)
        except grpc.aio.AioRpcError as error:
            why = wire.why_from(from_rpc_error(error))
        except TimeoutError:
            why = Why(ErrorReason.PEER_LOST, f"{peer.life} did not answer in {self._settings.dial_timeout_ms} ms")
        finally:
            # Rooms that ask from now on start another dial; these fail with this one.
            peer.dialling = False
            link, (waiting, peer.waiting) = peer.link, (peer.waiting, [])
            if link is not None:
                await asyncio.shield(asyncio.ensure_future(self._agent.link_down(link, link.down or why)))
        log.info("link to %s ended: %s: %s", peer.life, why.reason.value, why.message)
        for room in waiting:
            room.feed(Broken(why))

    def _channel(self, peer: _Peer) -> grpc.aio.Channel:
        """Raises LINK_LOST where we may not go: what is wrong is no argument of the request."""
        try:
            return open_channel(peer.address, self._agent.credentials)
        except TandemError as error:
            raise TandemError(ErrorReason.LINK_LOST, error.message) from error

    async def _live(self, peer: _Peer, call: Any) -> None:
        link = await self._open(peer, call)
        peer.link = link
        self._agent.link_up(link)
        waiting, peer.waiting = peer.waiting, []
        for room in waiting:
            room.link_up(link)
        ended = await link.live(
            self._read(link, call),
            call.write,
            ping_interval_ms=self._settings.ping_interval_ms,
            ping_timeout_ms=self._settings.ping_timeout_ms,
            ask=True,
        )
        for part in ended:
            part.result()

    async def _open(self, peer: _Peer, call: Any) -> KvLink:
        agent, setup = self._agent, self._agent.setup
        if agent.life is None:
            raise TandemError(ErrorReason.NOT_REGISTERED, "the worker is not registered yet")
        async with asyncio.timeout(self._settings.dial_timeout_ms / 1000):
            protocol, offers = setup.settings.protocol, agent.endpoint.offer()
            ours = hello.hello(protocol, agent.life, peer.life, setup.rank, setup.layout, offers)
            await call.write(kv_link_pb2.LinkRequest(hello=ours))
            first = await call.read()
            if first is grpc.aio.EOF or first.WhichOneof("message") != "hello":
                code = await call.code()
                if code is not grpc.StatusCode.OK:
                    raise from_rpc_error(
                        grpc.aio.AioRpcError(
                            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                        )
                    )
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{peer.life} did not answer with Hello")
            theirs, features = hello.check(first.hello, protocol, agent.life, setup.rank, setup.layout)
            if theirs != peer.life:
                raise TandemError(ErrorReason.STALE_INCARNATION, f"{peer.address} is {theirs}, not {peer.life}")
            layout = convert.layout_from_proto(first.hello.layout)
            rank = convert.rank_from_proto(first.hello.rank)
            epoch = LinkEpoch(first.hello.link_epoch)
            link = KvLink(theirs, rank, epoch, kv_link_pb2.LinkRequest, PoolMap(layout), self._settings.outbox_limit)

            def on_event(event: LaneEvent) -> None:
                agent.on_lane_event(link, event)

            if len(first.hello.providers) != 1:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{peer.life} chose no single provider")
            link.features = features
            link.offer_credit = first.hello.offer_credit
            link.receiver_lane = await agent.endpoint.connect(wire.provider_of(first.hello.providers[0]), on_event)
            return link

    async def _read(self, link: KvLink, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            link.heard()
            if response.link_epoch != link.epoch:
                self._agent.counters.stale_messages += 1
                continue
            match response.WhichOneof("message"):
                case "chunk_done":
                    self._agent.on_chunk_done(link, response.chunk_done)
                case "complete":
                    self._agent.on_complete(link, response.complete)
                case "abort":
                    self._agent.on_abort(link, response.abort)
                case "abort_ack":
                    self._agent.on_abort_ack(link, response.abort_ack)
                case "ping":
                    link.answer_ping(response.ping)
                case _:
                    self._agent.counters.stale_messages += 1
