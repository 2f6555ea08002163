"""How long to wait before another attempt: bounded, exponential, with jitter. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Waits grow from `initial_ms` by `factor` up to `max_ms`; each is shortened by up to `jitter` of itself."""

    initial_ms: float = 50.0
    max_ms: float = 1000.0
    factor: float = 2.0
    jitter: float = 0.5

    def delay_ms(self, attempt: int, unit: float) -> float:
        """Wait before attempt `attempt` (0 = the first retry), given a random number in [0, 1)."""
        # The exponent is bounded, because a float overflows after some thousand attempts.
        full = min(self.max_ms, self.initial_ms * self.factor ** min(attempt, 64))
        return full * (1.0 - self.jitter * unit)


class Backoff:
    """Counts failures in a row. `rng` is injected, so that a test can foretell the waits."""

    def __init__(self, policy: BackoffPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._attempt = 0

    def next_ms(self) -> float:
        """Wait before the next attempt, in milliseconds."""
        delay = self._policy.delay_ms(self._attempt, self._rng.random())
        self._attempt += 1
        return delay

    def reset(self) -> None:
        """An attempt went well."""
        self._attempt = 0
