"""Brings one sequence to its end: chooses workers, and where they fail tries again, or goes on, on others."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from opentelemetry.trace import Span

from tandem.core.affinity import NO_KEY, AffinityKey, key_of_prefix
from tandem.core.breaker import State
from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import NONCE_BYTES, RequestId, Role, RoomId, WorkerLife, room_from_random
from tandem.core.layout import KvLayout, mismatches
from tandem.core.policies import DEFAULT_LOAD_CAP, DEFAULT_PREFIX_TOKENS, Candidate, PolicyName, Turn, choose
from tandem.core.retry_budget import BudgetSettings, RetryBudget
from tandem.gateway.attempt import Attempt, Worker
from tandem.gateway.calls import Sequence
from tandem.gateway.first_token import FirstToken
from tandem.gateway.health import HealthBook
from tandem.gateway.request_trace import AttemptTrace, RouteTrace
from tandem.gateway.resume import Told
from tandem.gateway.rooms import RoomBook, RoomFacts
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

MAX_COUNTS: Final = 1024
"""Models that a policy counts for, those that are gone too."""

Deliver = Callable[[session_pb2.Delta | None], bool]
"""Takes news for the client; None makes void what came before. False if the client is too far behind."""


class RoutableWorker(Worker, Protocol):
    """A Session as the router sees it."""

    info: WorkerInfo

    @property
    def in_flight(self) -> int:
        """Rooms of ours that run there."""


class Workers(Protocol):
    """Where the router finds its workers; see tandem.gateway.pool.SessionPool."""

    def sessions(self, role: Role, model: str) -> SequenceOf[RoutableWorker]:
        """Those that can take a room of a model now."""

    def known(self, model: str) -> bool:
        """Whether there are workers of both roles, though we may have no Session with them at the moment."""

    async def wait_changed(self) -> None:
        """Returns when `sessions` may have others to offer."""


class Dice:
    """Every random number of the router, so that a test can load it."""

    def bits(self, count: int) -> int:
        """That many random bits."""
        return secrets.randbits(count)

    def nonce(self) -> bytes:
        """16 random bytes."""
        return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How workers are chosen; how often, and how soon, a sequence is tried again."""

    max_attempts: int = 3
    retry_backoff_ms: int = 20
    retry_wait_ms: int = 1000
    load_cap: float = DEFAULT_LOAD_CAP
    """See tandem.core.policies.Turn."""
    prefix_tokens: int = DEFAULT_PREFIX_TOKENS
    """How many tokens of a prompt are its beginning."""
    retries: BudgetSettings = field(default_factory=BudgetSettings)
    """Of all sequences together."""


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


@dataclass(frozen=True, slots=True)
class _Wish:
    """What one attempt wants of its workers."""

    model: str
    avoid: Collection[WorkerLife]
    """Others, where there are any."""
    session: AffinityKey
    prefix: AffinityKey


@dataclass(slots=True)
class _Chooser:
    """The policy of one role, and how often it was asked."""

    policy: PolicyName
    counts: Counter[str] = field(default_factory=Counter)
    """By model: models that take turns must not make each other skip workers."""

    def chose(self, model: str) -> None:
        """A worker of a model was chosen."""
        if len(self.counts) >= MAX_COUNTS and model not in self.counts:
            self.counts.clear()
        self.counts[model] += 1


class Router:
    """Routes sequences. One per gateway."""

    def __init__(
        self,
        workers: Workers,
        settings: RouterSettings,
        policies: dict[Role, PolicyName],
        tracing: Tracing,
        *,
        dice: Dice | None = None,
        on_retry: Callable[[ErrorReason], None] = lambda _: None,
        on_resume: Callable[[], None] = lambda: None,
        on_no_budget: Callable[[], None] = lambda: None,
        on_picked: Callable[[float], None] = lambda _: None,
        rooms: RoomBook | None = None,
        health: HealthBook | None = None,
    ) -> None:
        """on_no_budget: hears of each failed attempt that the retry budget leaves as it is. on_picked: gets the seconds
        that an attempt has waited for workers. rooms: where those that run are noted.
        health: who is trusted, and hears how rooms end."""
        self._workers = workers
        self._settings = settings
        self._choosers = {role: _Chooser(policies[role]) for role in Role}
        self._tracing = tracing
        self._dice = dice or Dice()
        self._on_retry = on_retry
        self._on_resume = on_resume
        self._on_no_budget = on_no_budget
        self._budget = RetryBudget(settings.retries, time.monotonic())
        self._on_picked = on_picked
        self._rooms = rooms or RoomBook()
        self._health = health or HealthBook()

    @property
    def policies(self) -> dict[Role, PolicyName]:
        """The policy of each role."""
        return {role: chooser.policy for role, chooser in self._choosers.items()}

    def set_policy(self, policy: PolicyName, role: Role | None = None) -> None:
        """Takes another policy from now on, for one role or for both."""
        for each in Role if role is None else (role,):
            self._choosers[each].policy = policy

    def breaker_of(self, life: WorkerLife) -> State:
        """How a worker is trusted."""
        return self._health.state_of(life)

    async def run(self, sequence: Sequence, journey: Journey, deliver: Deliver) -> None:
        """Returns when the sequence is complete; its news went to `deliver`. Raises TandemError where it failed.

        Cancelling it, and the deadline, end both legs of the room that runs.
        """
        try:
            async with asyncio.timeout_at(journey.deadline):
                await self._attempts(sequence, journey, deliver)
        except TimeoutError:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "The request ran out of time.") from None

    async def _attempts(self, sequence: Sequence, journey: Journey, deliver: Deliver) -> None:
        avoid: set[WorkerLife] = set()
        told, first_token, cause = Told(sequence), FirstToken(), None
        asked = sequence
        self._budget.began(time.monotonic())
        for number in range(1, self._settings.max_attempts + 1):
            decode, prefill = await self._route(sequence, journey, avoid)
            submit = self._submit(asked, journey, decode, prefill)
            trace = AttemptTrace(self._tracing, journey.span, sequence, number)
            trace.submit(submit, decode.life, prefill.life, len(asked.input_ids) - len(sequence.input_ids))
            pass_on = trace.noting(lambda delta: deliver(told.add(delta)))
            attempt = Attempt(submit, prefill, decode, pass_on, first_token)
            facts = RoomFacts(
                RoomId(submit.room), journey.request_id, number, prefill.life, decode.life, journey.deadline
            )
            with self._rooms.running(facts, attempt), self._health.watching(attempt, prefill.life, decode.life):
                failure = await _run(attempt, trace, journey.deadline)
            if failure is None:
                return
            cause = cause or failure
            log.warning("attempt %d on %s and %s failed: %s", number, prefill.life, decode.life, failure)
            if attempt.final:
                raise cause
            if not failure.spec.retryable or number == self._settings.max_attempts:
                raise failure
            if not self._budget.take(time.monotonic()):
                self._on_no_budget()
                raise failure
            if attempt.blamed is not Role.PREFILL:
                avoid.add(decode.life)
            if attempt.blamed is not Role.DECODE and not attempt.delivered:
                avoid.add(prefill.life)
            if told.can_go_on():
                asked, first_token, cause = told.rest(), FirstToken(), failure
                self._on_resume()
            elif attempt.delivered:
                if sequence.streamed:
                    raise failure
                told.forget()
                asked = sequence
                deliver(None)
            self._on_retry(failure.reason)
            backoff = self._tracing.start(names.BACKOFF, journey.span, {names.SEQUENCE: sequence.index})
            try:
                await asyncio.sleep(self._settings.retry_backoff_ms * number / 1000)
            finally:
                backoff.end()

    async def _route(
        self, sequence: Sequence, journey: Journey, avoid: set[WorkerLife]
    ) -> tuple[RoutableWorker, RoutableWorker]:
        trace = RouteTrace(self._tracing, journey.span, sequence, len(avoid))
        prefix = key_of_prefix(sequence.input_ids, self._settings.prefix_tokens)
        try:
            decode, prefill = await self._pick_in_time(_Wish(sequence.model, avoid, journey.session, prefix))
        except TandemError as error:
            trace.failed(error)
            raise
        except asyncio.CancelledError:
            trace.failed(TandemError(ErrorReason.CANCELLED, "The request ended while it waited for workers."))
            raise
        trace.chose(
            decode.life,
            prefill.life,
            {
                names.DECODE_CANDIDATES: len(self._workers.sessions(Role.DECODE, sequence.model)),
                names.PREFILL_CANDIDATES: len(self._workers.sessions(Role.PREFILL, sequence.model)),
                names.POLICY: self._choosers[Role.DECODE].policy.value,
            },
        )
        return decode, prefill

    async def _pick_in_time(self, wish: _Wish) -> tuple[RoutableWorker, RoutableWorker]:
        """As `_pick`; but what failed an attempt, or came just before the first, may have hit every Session, so it
        waits for them a while.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + self._settings.retry_wait_ms / 1000
        while True:
            try:
                picked = self._pick(wish)
                self._on_picked(loop.time() - began)
                return picked
            except TandemError:
                if loop.time() >= until or not (wish.avoid or self._workers.known(wish.model)):
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._workers.wait_changed()

    def _pick(self, wish: _Wish) -> tuple[RoutableWorker, RoutableWorker]:
        """A decode and a prefill worker whose layouts fit."""
        prefills = self._workers.sessions(Role.PREFILL, wish.model)
        decodes = self._workers.sessions(Role.DECODE, wish.model)
        decodes = [d for d in decodes if not prefills or any(_fit(d.info.layout, p.info.layout) for p in prefills)]
        decode = self._choose(Role.DECODE, decodes, wish)
        fitting = [p for p in prefills if _fit(decode.info.layout, p.info.layout)]
        return decode, self._choose(Role.PREFILL, fitting, wish)

    def _choose(self, role: Role, workers: SequenceOf[RoutableWorker], wish: _Wish) -> RoutableWorker:
        by_life = {worker.life: worker for worker in workers}
        healthy = [life for life in by_life if self._health.takes(life)] or list(by_life)
        fresh = [life for life in healthy if life not in wish.avoid] or healthy
        candidates = [
            Candidate(life, by_life[life].in_flight, self._health.places(life, by_life[life].info.max_running))
            for life in fresh
        ]
        chooser = self._choosers[role]
        count, cap = chooser.counts[wish.model], self._settings.load_cap
        turn = Turn(count, self._dice.bits(32), wish.session, wish.prefix, cap)
        chosen = choose(chooser.policy, candidates, turn, role)
        chooser.chose(wish.model)
        return by_life[chosen.life]

    def _submit(
        self, sequence: Sequence, journey: Journey, decode: RoutableWorker, prefill: RoutableWorker
    ) -> session_pb2.Submit:
        room = room_from_random(self._dice.bits(63))
        left_ms = (journey.deadline - asyncio.get_running_loop().time()) * 1000
        if left_ms <= 0:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "The request ran out of time.")
        return session_pb2.Submit(
            request_id=journey.request_id,
            room=room,
            nonce=self._dice.nonce(),
            timeout_ms=max(1, int(left_ms)),
            model=sequence.model,
            input_ids=sequence.input_ids,
            sampling=sequence.sampling,
            logprobs=sequence.item.logprobs,
            early_first_token=sequence.early_first_token,
            prefill_dp_rank=room % prefill.info.dp_size,
            decode_dp_rank=room % decode.info.dp_size,
        )


async def _run(attempt: Attempt, trace: AttemptTrace, deadline: float) -> TandemError | None:
    trace.follow(attempt)
    try:
        failure = await attempt.run()
    except asyncio.CancelledError:
        trace.given_up(late=asyncio.get_running_loop().time() >= deadline)
        raise
    trace.ended(failure)
    return failure


@lru_cache(1024)
def _fit(ours: KvLayout, theirs: KvLayout) -> bool:
    return not mismatches(ours, theirs)
