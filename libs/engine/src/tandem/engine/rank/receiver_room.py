"""Decode's side of a room: grants its pages, and verifies what lands there."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.pages import I64, rest_of_prompt
from tandem.core.room.events import (
    Broken,
    ChunkClaimed,
    ChunkSeen,
    CloseGrant,
    CompleteClaimed,
    Effect,
    LinkUp,
    PagesReserved,
    Quiet,
    SendLanded,
    SendOffer,
    Why,
)
from tandem.core.room.receiver import Receiver
from tandem.core.room.timeline import RoomSpan, Step
from tandem.core.version import Feature
from tandem.engine.port import Ticket
from tandem.engine.rank import wire
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.offers import Offer, OfferParts, pack_entries
from tandem.engine.rank.pools import KV_POOL, METADATA_POOL
from tandem.engine.rank.rooms import RoomHost, RoomShell
from tandem.rdma.api import ChunkLanded, Grant
from tandem.rpc.continued import MAX_PARTS
from tandem.v1 import kv_link_pb2

log = logging.getLogger(__name__)


class ReceiverRoom(RoomShell):
    """Shell of `tandem.core.room.receiver.Receiver`."""

    def __init__(self, ticket: Ticket, host: RoomHost) -> None:
        self._receiver = Receiver(ticket.deadline)
        super().__init__(ticket, self._receiver, host)
        self._entries: tuple[I64, ...] = ()
        self._prefix_len = 0
        self._grant: Grant | None = None
        if self._timeline is not None:
            self._timeline.begin(Step.LINK_WAIT)

    @property
    def granted_pages(self) -> int:
        """Pages that it has granted."""
        return int(self._entries[KV_POOL].size) if self._grant is not None else 0

    @property
    def bytes_moved(self) -> int:
        """Bytes of verified chunks."""
        return self._receiver.bytes_verified

    def link_up(self, link: KvLink) -> None:
        """The link to the prefill rank is there."""
        self.link = link
        link.rooms.add(self.room)
        if self._timeline is not None:
            self._timeline.end(Step.LINK_WAIT)
            self._timeline.begin(Step.RESERVE)
        self.feed(LinkUp())

    def reserved(self, grant_id: GrantId, entries: Sequence[I64], decode_prefix_len: int) -> None:
        """The engine reserved these entries per pool: open the grant and offer it."""
        if self._receiver.why is not None:
            return  # it is failing: nobody would close the grant
        link = self.link
        if self._grant is not None or link is None or link.receiver_lane is None:
            self.feed(Broken(Why(ErrorReason.LINK_LOST, "the room has no lane")))
            return
        if link.open_offers >= link.offer_credit:
            self.feed(Broken(Why(ErrorReason.OVERLOADED, f"{link.offer_credit} offers to {link.peer} are open")))
            return
        try:
            self._check_prefix(link, decode_prefix_len)
        except TandemError as error:
            self.feed(Broken(wire.why_from(error)))
            return
        self._begin()
        self._entries = tuple(entries)
        self._prefix_len = decode_prefix_len
        ranges = self._host.pools.own(self._entries)
        try:
            self._grant = link.receiver_lane.grant(grant_id, ranges.dst, ranges.lengths)
        except TandemError as error:
            self.feed(Broken(wire.why_from(error)))
            return
        link.open_offers += 1
        self._count_granted(+1)
        if self._timeline is not None:
            pages = int(self._entries[KV_POOL].size)
            self._timeline.end(Step.RESERVE, pages=pages)
            self._timeline.begin(Step.RECEIVE, pages=pages, provider=link.provider, prefix_tokens=decode_prefix_len)
        self.feed(PagesReserved(grant_id, ranges.bytes))

    def _check_prefix(self, link: KvLink, prefix_tokens: int) -> None:
        """Raises TandemError for a prefix that can't be, or that the peer does not know to leave out."""
        rest_of_prompt(self.ticket.prompt_tokens, prefix_tokens, self._host.page_size)
        if prefix_tokens and Feature.DECODE_PREFIX not in link.features:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"{link.peer} moves whole prompts only, without a prefix")

    def seen(self, event: ChunkLanded) -> None:
        """Own evidence: a chunk's bytes are in memory."""
        if self._timeline is not None:
            now = self._timeline.now()
            self._timeline.note(RoomSpan(Step.LANDED, now, now, event.chunk, bytes=event.bytes))
        self.feed(ChunkSeen(event.grant_id, event.chunk, event.bytes, event.checksum))

    def claimed(self, message: kv_link_pb2.ChunkDone) -> None:
        """Prefill's word on a chunk."""
        checksum = message.checksum if message.has_checksum else None
        grant_id, chunk = GrantId(message.grant_id), ChunkIndex(message.chunk)
        self.feed(ChunkClaimed(grant_id, chunk, message.bytes, checksum))

    def completed(self, message: kv_link_pb2.Complete) -> None:
        """Prefill's word on the room."""
        self.feed(CompleteClaimed(GrantId(message.grant_id), message.chunks, message.bytes))

    def act(self, effect: Effect) -> None:
        """Carries out what only a receiver does."""
        match effect:
            case SendOffer(grant_id):
                self._send_offer(grant_id)
            case SendLanded(grant_id):
                self._count_landed()
                link = self._live_link()
                if link.down is None:
                    link.send(urgent=True, landed=kv_link_pb2.Landed(room=self.room, grant_id=grant_id))
            case CloseGrant():
                if self._timeline is not None:
                    self._timeline.end(Step.RECEIVE, moved=self.bytes_moved)
                    self._timeline.begin(Step.CLOSE)
                self._host.spawn(self._hand_in(), f"close grant of {self.room}")
            case _:
                raise AssertionError(f"a receiver can't {effect}")

    def _send_offer(self, grant_id: GrantId) -> None:
        link = self._live_link()
        offer = Offer(
            room=self.room,
            grant_id=grant_id,
            nonce=self.ticket.nonce,
            runs=pack_entries(self._entries),
            metadata_row=int(self._entries[METADATA_POOL][0]),
            decode_prefix_len=self._prefix_len,
        )
        parts = OfferParts(offer)
        if len(parts) > 1 and Feature.CONTINUED not in link.features:
            raise TandemError(
                ErrorReason.NOT_SUPPORTED, f"an offer of {len(parts)} messages; {link.peer} takes one of each room"
            )
        if len(parts) > MAX_PARTS:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"an offer of {len(parts)} messages; {MAX_PARTS} are allowed")
        # Nothing of an offer is worth sending once its room fails: prefill has the abort then, which overtakes.
        link.send_offer(itertools.takewhile(lambda _: self._receiver.why is None, parts))

    def _live_link(self) -> KvLink:
        if self.link is None:
            raise TandemError(ErrorReason.LINK_LOST, "the room has no link")
        return self.link

    async def _hand_in(self) -> None:
        """Closes the grant of a verified room, and sees to it that its pages are the engine's."""
        why = None
        if self._grant is not None:
            await self._grant.revoke()
            ranges = self._host.pools.own(self._entries)
            try:
                await self._host.staging.upload(ranges.dst, ranges.lengths)
            except TandemError as error:
                why = wire.why_from(error)
        self.feed(Quiet(why))

    async def _quiesce(self) -> None:
        if self._grant is not None:
            if self.link is not None:
                self._host.counters.measures.revoked[self.link.provider] += 1
            await self._grant.revoke()
            try:
                await self._host.staging.settle()
            except TandemError as error:
                text = "%s: what has landed may still appear in its pages: %s"
                log.error(text, self.label, error.message, extra=self.log_ids)
        self.feed(Quiet())

    def _end(self, why: Why | None) -> None:
        if self._timeline is not None and why is None:
            self._timeline.end(Step.CLOSE)
        if self._grant is not None and self.link is not None:
            self.link.open_offers -= 1
            self._count_granted(-1)
        super()._end(why)

    def _count_granted(self, sign: int) -> None:
        counters = self._host.counters
        counters.granted_pages += sign * int(self._entries[KV_POOL].size)
        counters.granted_rows += sign * int(self._entries[METADATA_POOL].size)
        for pool in range(METADATA_POOL + 1, len(self._entries)):
            name = self._host.pools.name(pool)
            granted = counters.granted_states.get(name, 0)
            counters.granted_states[name] = granted + sign * int(self._entries[pool].size)

    def _count_landed(self) -> None:
        counters, pools = self._host.counters, self._host.pools
        for pool, index in enumerate(self._entries):
            if pool == METADATA_POOL:
                counters.metadata_bytes += int(index.size) * pools.entry_bytes(pool)
            else:
                counters.kv_bytes += int(index.size) * pools.entry_bytes(pool)
        counters.kv_chunks += self._receiver.chunks_verified
        held = self._prefix_len // self._host.page_size
        counters.measures.prefix_bytes += held * pools.entry_bytes(KV_POOL)
