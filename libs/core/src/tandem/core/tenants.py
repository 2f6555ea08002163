"""Tenants: who shares the gateway, what each may have, and what it has used of that.

Pure: time is handed in, monotonic seconds for rates and seconds since 1970 for days.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import RANKS, Priority
from tandem.core.refusals import Refusal, Refused
from tandem.core.token_bucket import TokenBucket

DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant may have. 0 = no limit."""

    name: str
    weight: float = 1.0
    """Its share in the queue, above 0."""
    priority: Priority = Priority.NORMAL
    """Class of its requests, and the highest that they may ask for."""
    requests_per_min: int = 0
    tokens_per_min: int = 0
    """Of prompts, and those generated."""
    tokens_per_day: int = 0
    """The same, from midnight to midnight UTC."""
    max_concurrent: int = 0
    """Sequences that run at the same time."""
    models: frozenset[str] = frozenset()
    """Those that it may use; empty = all."""

    def class_of(self, asked: Priority | None) -> Priority:
        """The class of a request. asked: what the request says."""
        return self.priority if asked is None else max(asked, self.priority, key=RANKS.__getitem__)

    def require_model(self, model: str) -> None:
        """Raises UNKNOWN_MODEL for a model that it may not use."""
        if self.models and model not in self.models:
            listed = ", ".join(sorted(self.models))
            raise TandemError(
                ErrorReason.UNKNOWN_MODEL, f"This key may not use {model!r}. It may use: {listed}.", field="model"
            )


@dataclass(frozen=True, slots=True)
class Standing:
    """How a tenant stands with one rate limit."""

    kind: str
    """`requests` or `tokens`."""
    limit: int
    left: int
    reset_s: float
    """Until nothing of it counts as used."""


class Account:
    """What one tenant has used."""

    def __init__(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self._requests = TokenBucket(tenant.requests_per_min, now) if tenant.requests_per_min else None
        self._tokens = TokenBucket(tenant.tokens_per_min, now) if tenant.tokens_per_min else None
        self._day = -1
        self._used_today = 0

    def count_request(self, now: float) -> None:
        """A request has come. Raises Refused if there were too many of late."""
        if self._requests is None:
            return
        wait_s = self._requests.wait_s(1, now)
        if wait_s:
            raise Refused(
                Refusal.REQUESTS,
                f"More than {self._requests.per_min} requests per minute. Try again in {wait_s:.1f} s.",
                retry_after_s=wait_s,
                reason=ErrorReason.RATE_LIMITED,
            )
        self._requests.take(1, now)

    def charge(self, tokens: int, now: float, wall_s: float) -> None:
        """Takes the most that a request can need. Raises Refused if that is too much for now, INVALID_ARGUMENT if it
        is for ever; then nothing is taken.
        """
        if self._tokens is not None:
            self._require_possible(tokens, self._tokens.per_min, "minute")
            wait_s = self._tokens.wait_s(tokens, now)
            if wait_s:
                raise Refused(
                    Refusal.TOKENS,
                    f"The request needs up to {tokens} tokens, and {int(self._tokens.left(now))} of"
                    f" {self._tokens.per_min} per minute are left. Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                    reason=ErrorReason.RATE_LIMITED,
                )
        self._charge_day(tokens, wall_s)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def give_back(self, tokens: int, now: float, wall_s: float) -> None:
        """Of what was charged, this was not needed."""
        if self._tokens is not None:
            self._tokens.give_back(tokens, now)
        if self._day == int(wall_s // DAY_S):
            self._used_today = max(0, self._used_today - tokens)

    def standings(self, now: float) -> Iterator[Standing]:
        """How it stands with its limits per minute."""
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                yield Standing(kind, bucket.per_min, max(0, int(bucket.left(now))), bucket.full_s(now))

    def _charge_day(self, tokens: int, wall_s: float) -> None:
        most = self.tenant.tokens_per_day
        if not most:
            return
        self._require_possible(tokens, most, "day")
        day = int(wall_s // DAY_S)
        if day != self._day:
            self._day, self._used_today = day, 0
        if self._used_today + tokens > most:
            raise Refused(
                Refusal.QUOTA,
                f"The request needs up to {tokens} tokens, and {most - self._used_today} of {most} per day are left."
                " The day ends at midnight UTC.",
                retry_after_s=(day + 1) * DAY_S - wall_s,
                reason=ErrorReason.QUOTA_EXCEEDED,
            )
        self._used_today += tokens

    def _require_possible(self, tokens: int, most: int, period: str) -> None:
        if tokens > most:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"The request needs up to {tokens} tokens, and this key may have {most} per {period}. Ask for fewer new"
                " tokens, or shorten the prompt.",
                field="max_tokens",
            )
