"""Hears what the gateway measures, and keeps a few minutes of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from tandem.core.clock import Clock
from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.core.ids import RequestId
from tandem.gateway.dashboard.ring import Ring
from tandem.gateway.gateway_metrics import Observer

ERRORS_KEPT: Final = 50


@dataclass(frozen=True, slots=True)
class SeenError:
    """A request that failed."""

    time_ms: int
    """Since 1970."""
    reason: str
    endpoint: str
    request_id: str
    text: str
    """The catalogue's sentence; never the error's own, which may quote the request."""


class Recorder(Observer):
    """Counts the requests of some endpoints in a ring, and keeps their last errors."""

    def __init__(self, clock: Clock, endpoints: frozenset[str]) -> None:
        """endpoints: those that count; probes and scrapes are not load."""
        self._clock = clock
        self._endpoints = endpoints
        self.ring = Ring(clock.monotonic())
        self.errors: deque[SeenError] = deque(maxlen=ERRORS_KEPT)
        """The newest last."""

    def saw_first_token(self, now: float, ttft_s: float) -> None:
        """Into the ring."""
        self.ring.at(now).ttft.add(ttft_s)

    def saw_tokens(self, now: float, tokens: int, itl_s: float | None) -> None:
        """Into the ring."""
        bucket = self.ring.at(now)
        bucket.tokens += tokens
        if itl_s is not None:
            bucket.itl.add(itl_s)

    def saw_answer(self, endpoint: str) -> None:
        """Into the ring."""
        if endpoint in self._endpoints:
            self.ring.at(self._clock.monotonic()).requests += 1

    def saw_error(self, endpoint: str, reason: ErrorReason, request_id: RequestId) -> None:
        """Into the ring and the list. A client that went away is no error."""
        if endpoint in self._endpoints and reason is not ErrorReason.CANCELLED:
            self.ring.at(self._clock.monotonic()).errors += 1
            text = CATALOGUE[reason].public_text
            self.errors.append(SeenError(self._clock.wall_ms(), reason.value, endpoint, request_id, text))
