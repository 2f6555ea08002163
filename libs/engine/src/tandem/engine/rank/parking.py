"""Offers that came before their tickets: parked, bounded in number and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem.core.ids import RoomId
from tandem.engine.rank.link import KvLink
from tandem.v1 import kv_link_pb2

_Parked = tuple[KvLink, kv_link_pb2.OfferPages]


class ParkedOffers:
    """At most `limit` offers wait at most `timeout_ms` each; the first offer of a room wins."""

    def __init__(self, limit: int, timeout_ms: int, expired: Callable[[KvLink, kv_link_pb2.OfferPages], None]) -> None:
        self._limit = limit
        self._timeout_s = timeout_ms / 1000
        self._expired = expired
        self._offers: dict[RoomId, tuple[_Parked, asyncio.TimerHandle]] = {}

    def put(self, link: KvLink, offer: kv_link_pb2.OfferPages) -> bool:
        """Parks an offer. False if there is no place."""
        room = RoomId(offer.room)
        if room in self._offers or len(self._offers) >= self._limit:
            return False
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire, room)
        self._offers[room] = ((link, offer), timer)
        return True

    def take(self, room: RoomId) -> _Parked | None:
        """The offer of a room whose ticket is there now; None if it has none, or its link is gone."""
        entry = self._offers.pop(room, None)
        if entry is None:
            return None
        parked, timer = entry
        timer.cancel()
        return parked if parked[0].down is None else None

    def clear(self) -> None:
        """Drops every offer."""
        for _, timer in self._offers.values():
            timer.cancel()
        self._offers.clear()

    def _expire(self, room: RoomId) -> None:
        (link, offer), _ = self._offers.pop(room)
        self._expired(link, offer)
