"""Offers that came before their tickets: parked, bounded in number, memory and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tandem.core.ids import RoomId
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.offers import Offer

MAX_PARKED_BYTES: Final = 256 << 20
"""Most memory that the runs of parked offers may take, on one rank."""

_Parked = tuple[KvLink, Offer]


class ParkedOffers:
    """At most `limit` offers wait at most `timeout_ms` each; the first offer of a room wins."""

    def __init__(self, limit: int, timeout_ms: int, expired: Callable[[KvLink, Offer], None]) -> None:
        self._limit = limit
        self._timeout_s = timeout_ms / 1000
        self._expired = expired
        self._offers: dict[RoomId, tuple[_Parked, asyncio.TimerHandle]] = {}
        self._bytes = 0

    def put(self, link: KvLink, offer: Offer) -> bool:
        """Parks an offer. False if there is no place."""
        if offer.room in self._offers or len(self._offers) >= self._limit:
            return False
        if self._bytes + offer.bytes > MAX_PARKED_BYTES:
            return False
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire, offer.room)
        self._offers[offer.room] = ((link, offer), timer)
        self._bytes += offer.bytes
        return True

    def take(self, room: RoomId) -> _Parked | None:
        """The offer of a room whose ticket is there now; None if it has none, or its link is gone."""
        entry = self._offers.pop(room, None)
        if entry is None:
            return None
        parked, timer = entry
        timer.cancel()
        self._bytes -= parked[1].bytes
        return parked if parked[0].down is None else None

    def clear(self) -> None:
        """Drops every offer."""
        for _, timer in self._offers.values():
            timer.cancel()
        self._offers.clear()
        self._bytes = 0

    def _expire(self, room: RoomId) -> None:
        (link, offer), _ = self._offers.pop(room)
        self._bytes -= offer.bytes
        self._expired(link, offer)
