"""One room on the workers of a team: from its Submit to how it ended."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from opentelemetry.trace import Span

from tandem.core.affinity import NO_KEY, AffinityKey
from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import NONCE_BYTES, RequestId, Role, RoomId, WorkerLife, room_from_random
from tandem.core.page_ledger import Seat
from tandem.gateway.calls import Sequence
from tandem.gateway.routing.attempt import Attempt, Worker
from tandem.gateway.routing.first_token import FirstToken
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.lone_attempt import LoneAttempt
from tandem.gateway.routing.request_trace import AttemptTrace
from tandem.gateway.routing.room_end import RoomEnd
from tandem.gateway.routing.rooms import RoomBook, RoomFacts
from tandem.rpc.tracing.provider import Tracing
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

Tell = Callable[[session_pb2.Delta], bool]
"""Takes news of an attempt; False if the client is too far behind."""

_DP_RANKS: Final = {
    Role.PREFILL: "prefill_dp_rank",
    Role.DECODE: "decode_dp_rank",
    Role.UNIFIED: "decode_dp_rank",
}
"""Field of Submit that names the rank of each leg."""


class RoutableWorker(Worker, Protocol):
    """A Session as the router sees it."""

    info: WorkerInfo

    @property
    def in_flight(self) -> int:
        """Rooms of ours that run there."""


Team = Mapping[Role, RoutableWorker]
"""Who serves one room: a worker of each role of a pair, or a unified one."""


class Dice:
    """Every random number of the router, so that a test can load it."""

    def __init__(self) -> None:
        self._draws = random.Random()

    def draw(self) -> int:
        """32 random bits for a choice among workers, no secret: the operating system need not be asked for each."""
        return self._draws.getrandbits(32)

    def bits(self, count: int) -> int:
        """That many random bits."""
        return secrets.randbits(count)

    def nonce(self) -> bytes:
        """16 random bytes."""
        return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class Journey:
    """What all sequences of one client request share."""

    request_id: RequestId
    span: Span
    """Of the request."""
    deadline: float
    """Monotonic seconds, of the event loop's clock."""
    session: AffinityKey = NO_KEY
    """Of the session that the client named."""
    seats: tuple[Seat, ...] = ()
    """Room on decode workers, of each sequence; none: there is no bound."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one attempt is to do."""

    sequence: Sequence
    asked: Sequence
    """The same, or what is left of it."""
    journey: Journey
    number: int
    seat: Seat
    """Its room where it decodes."""


@dataclass(frozen=True, slots=True)
class Ran:
    """An attempt that has ended, and why it failed; None: it did not."""

    attempt: Attempt | LoneAttempt
    failure: TandemError | None
    first_token: FirstToken


class RoomRuns:
    """Runs them. One per gateway."""

    def __init__(
        self, tracing: Tracing, dice: Dice, rooms: RoomBook, health: HealthBook, on_sent: Callable[[Seat], None]
    ) -> None:
        """rooms: where those that run are noted. health: hears how they end. on_sent: hears of each seat whose worker
        was asked."""
        self._tracing = tracing
        self._dice = dice
        self._rooms = rooms
        self._health = health
        self._on_sent = on_sent

    async def run(
        self,
        order: Order,
        team: Team,
        deliver: Tell,
        first_token: FirstToken,
        measuring: Callable[[RoomEnd], AbstractContextManager[None]],
    ) -> Ran:
        """One attempt to its end; cancelling it ends all legs. measuring: is entered while it runs.

        Raises DEADLINE_EXCEEDED if there is no time for it.
        """
        sequence, journey = order.sequence, order.journey
        legs = lives_of(team)
        submit = self._submit(order, team)
        trace = AttemptTrace(self._tracing, journey.span, sequence, order.number)
        trace.submit(submit, legs, len(order.asked.input_ids) - len(sequence.input_ids))
        attempt = _attempt(submit, team, trace.noting(deliver), first_token)
        facts = RoomFacts(RoomId(submit.room), journey.request_id, order.number, legs, journey.deadline)
        del submit  # the attempt forgets it once it is sent
        with self._rooms.running(facts, attempt), self._health.watching(attempt.end, legs), measuring(attempt.end):
            failure = await _run(attempt, trace, journey.deadline, lambda: self._on_sent(order.seat))
        if failure is not None:
            log.warning("attempt %d on %s failed: %s", order.number, " and ".join(map(str, legs.values())), failure)
        return Ran(attempt, failure, first_token)

    def _submit(self, order: Order, team: Team) -> session_pb2.Submit:
        sequence, journey = order.asked, order.journey
        room = room_from_random(self._dice.bits(63))
        left_ms = (journey.deadline - asyncio.get_running_loop().time()) * 1000
        if left_ms <= 0:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "The request ran out of time.")
        submit = session_pb2.Submit(
            request_id=journey.request_id,
            room=room,
            nonce=self._dice.nonce(),
            timeout_ms=max(1, int(left_ms)),
            model=sequence.model,
            input_ids=sequence.input_ids,
            sampling=sequence.sampling,
            logprobs=sequence.item.logprobs,
            early_first_token=sequence.early_first_token,
        )
        for role, worker in team.items():
            seated = order.seat.worker == worker.life
            setattr(submit, _DP_RANKS[role], order.seat.rank if seated else room % worker.info.dp_size)
        return submit


def lives_of(team: Team) -> dict[Role, WorkerLife]:
    """Who is in it."""
    return {role: worker.life for role, worker in team.items()}


def _attempt(submit: session_pb2.Submit, team: Team, deliver: Tell, first_token: FirstToken) -> Attempt | LoneAttempt:
    if (unified := team.get(Role.UNIFIED)) is not None:
        return LoneAttempt(submit, unified, deliver, first_token)
    return Attempt(submit, team[Role.PREFILL], team[Role.DECODE], deliver, first_token)


async def _run(
    attempt: Attempt | LoneAttempt, trace: AttemptTrace, deadline: float, sent: Callable[[], None]
) -> TandemError | None:
    trace.follow(attempt)
    try:
        failure = await attempt.run(sent)
    except asyncio.CancelledError:
        trace.given_up(late=asyncio.get_running_loop().time() >= deadline)
        raise
    trace.ended(failure)
    return failure
