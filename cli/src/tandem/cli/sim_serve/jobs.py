"""A request on its way through the model of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem.cli.sim_serve.clients import ANYBODY, Client
from tandem.cli.sim_serve.protocol import RoomRun
from tandem.core.affinity import NO_KEY, AffinityKey
from tandem.core.fair_queue import Ticket
from tandem.core.pair_book import Underway

Pieces = tuple[tuple[int, int], ...]
"""A prompt as (key, tokens) of its pieces: equal first pieces are equal beginnings."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asks."""

    at_s: float
    pieces: Pieces
    new_tokens: int
    """At least 1."""
    session: AffinityKey = NO_KEY
    prefix: AffinityKey = NO_KEY
    client: Client = ANYBODY

    @property
    def prompt_tokens(self) -> int:
        """Of all pieces; at least 1."""
        return sum(tokens for _, tokens in self.pieces)


class Target(Protocol):
    """Where a prompt's KV goes."""

    receives_until_s: float
    """When its link is free again."""

    def land(self, job: Job) -> None:
        """All of it has arrived."""


@dataclass(slots=True)
class Job:
    """An Ask, and what became of it so far. Times are virtual seconds."""

    ask: Ask
    prompt_tokens: int
    cached_tokens: int = 0
    """Of its prompt, what prefill had; at least one token is computed."""
    first_token_s: float = 0.0
    ended_s: float = 0.0
    target: Target | None = None
    """Its decode worker; None where the engine that computes the prompt goes on with it."""
    ticket: Ticket | None = None
    """Its place in the gateway, once it has asked for one."""
    room: RoomRun | None = None
    """Its machines, where they are run."""
    underway: Underway | None = None
    """What the gateway measures of it, where it chooses pairs by cost."""
    joined_step: int = 0
    """Of decode's batch, when it came into it."""
    longest_gap_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return self.first_token_s - self.ask.at_s

    @property
    def e2e_s(self) -> float:
        """To the last."""
        return self.ended_s - self.ask.at_s

    @property
    def tpot_s(self) -> float:
        """Per token after the first; 0 if there is none."""
        rest = self.ask.new_tokens - 1
        return (self.ended_s - self.first_token_s) / rest if rest else 0.0
