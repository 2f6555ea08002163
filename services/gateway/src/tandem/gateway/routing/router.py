"""Brings one sequence to its end: chooses workers, and where they fail tries again, or goes on, on others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tandem.core.affinity import NO_KEY
from tandem.core.breaker import State
from tandem.core.candidates import Candidates
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ALONE, Role, WorkerLife
from tandem.core.kv_index import NOTHING_HELD
from tandem.core.page_ledger import Seat
from tandem.core.pair_book import PairBook
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS, teams_for
from tandem.core.policies import (
    BY_HELD_PAGES,
    BY_PREFIX,
    DEFAULT_LOAD_CAP,
    DEFAULT_PREFIX_TOKENS,
    PolicyName,
    Turn,
    choose,
)
from tandem.core.prompt_pages import PageMemo
from tandem.core.retry_budget import BudgetSettings, RetryBudget
from tandem.gateway.calls import Sequence
from tandem.gateway.routing.crew import Among, Crew, layouts_fit
from tandem.gateway.routing.decode_room import DecodeRoom
from tandem.gateway.routing.first_token import FirstToken
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.hedge import Race
from tandem.gateway.routing.held_pages import Holders, NobodyHolds
from tandem.gateway.routing.pair_costs import prompt_of, running
from tandem.gateway.routing.request_trace import CANDIDATES, HELD_TOKENS, POLICIES, RouteTrace
from tandem.gateway.routing.resume import Told
from tandem.gateway.routing.room_end import RoomEnd
from tandem.gateway.routing.room_runs import Dice, Journey, Order, Ran, RoomRuns, RoutableWorker, Team, Tell, lives_of
from tandem.gateway.routing.rooms import RoomBook
from tandem.gateway.routing.wish import Wish
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, Value
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

MAX_COUNTS: Final = 1024
"""Models that a policy counts for, those that are gone too."""

MAX_CHUNKS: Final = 4096
"""Of prompts, whose hashes are remembered: a million tokens, in 6 MB, or in 14 MB where a page is one token."""

Deliver = Callable[[session_pb2.Delta | None], bool]
"""Takes news for the client; None makes void what came before. False if the client is too far behind."""


class Workers(Protocol):
    """Where the router finds its workers; see tandem.gateway.routing.pool.SessionPool."""

    def crew(self, role: Role, model: str) -> Crew[RoutableWorker]:
        """Those that can take a room of a model now."""

    def known(self, model: str) -> bool:
        """Whether there are workers that can serve it, though we may have no Session with them at the moment."""

    async def wait_changed(self) -> None:
        """Returns when `sessions` may have others to offer."""


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
    unified_max_prompt_tokens: int = DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
    """See tandem.core.placement.teams_for."""
    hedge_after_ms: int = 0
    """See tandem.gateway.routing.hedge; 0 = never."""


class Choice(NamedTuple):
    """A worker, and what of the prompt it is known to hold."""

    worker: RoutableWorker
    policy: PolicyName
    held_tokens: int


Choices = Mapping[Role, Choice]
"""For one room: of each role of a pair, or a unified one."""


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
        on_hedge: Callable[[bool], None] = lambda _: None,
        on_picked: Callable[[float], None] = lambda _: None,
        rooms: RoomBook | None = None,
        health: HealthBook | None = None,
        holders: Holders | None = None,
        on_held: Callable[[Role, int], None] = lambda *_: None,
        costs: PairBook | None = None,
        room: DecodeRoom | None = None,
    ) -> None:
        """on_no_budget: hears of each failed attempt that the retry budget leaves as it is. on_hedge: whether the
        second of two rooms for an answer was the one that was heard. on_picked: gets the seconds
        that an attempt has waited for workers. rooms: where those that run are noted.
        health: who is trusted, and hears how rooms end. holders: who holds what. on_held: gets the tokens of each
        prompt that the chosen worker of a role is known to hold. costs: what pairs cost, for LEAST_COST.
        room: where answers have it; without a bound if None."""
        self._workers = workers
        self._settings = settings
        self._choosers = {role: _Chooser(policies[role]) for role in Role}
        self._tracing = tracing
        self._dice = dice or Dice()
        self._on_retry = on_retry
        self._on_resume = on_resume
        self._on_no_budget = on_no_budget
        self._on_hedge = on_hedge
        self._budget = RetryBudget(settings.retries, time.monotonic())
        self._on_picked = on_picked
        self._health = health or HealthBook()
        self._holders = holders or NobodyHolds()
        self._on_held = on_held
        self._costs = costs or PairBook(time.monotonic)
        self._room = room or DecodeRoom()
        self._space = self._room.space
        self._runs = RoomRuns(tracing, self._dice, rooms or RoomBook(), self._health, self._space.sent)
        self._holders.serve(self.policies)
        self._memo = PageMemo(MAX_CHUNKS)

    @property
    def policies(self) -> dict[Role, PolicyName]:
        """The policy of each role."""
        return {role: chooser.policy for role, chooser in self._choosers.items()}

    def set_policy(self, policy: PolicyName, role: Role | None = None) -> None:
        """Takes another policy from now on, for one role or for all."""
        for each in Role if role is None else (role,):
            self._choosers[each].policy = policy
        self._holders.serve(self.policies)

    def breaker_of(self, life: WorkerLife) -> State:
        """How a worker is trusted."""
        return self._health.state_of(life)

    async def run(self, sequence: Sequence, journey: Journey, deliver: Deliver) -> None:
        """Returns when the sequence is complete; its news went to `deliver`. Raises TandemError where it failed.

        Cancelling it, and the deadline, end every leg of the room that runs.
        """
        seat = journey.seats[sequence.index] if journey.seats else Seat(0)
        try:
            async with asyncio.timeout_at(journey.deadline):
                await self._attempts(sequence, journey, seat, deliver)
        except TimeoutError:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "The request ran out of time.") from None
        finally:
            self._space.leave(seat)

    async def _attempts(self, sequence: Sequence, journey: Journey, seat: Seat, deliver: Deliver) -> None:
        avoid: set[WorkerLife] = set()
        told, first_token, cause = Told(sequence), FirstToken(), None
        asked = sequence
        self._budget.began(time.monotonic())
        for number in range(1, self._settings.max_attempts + 1):
            choices = await self._route(sequence, journey, avoid, seat)
            order = Order(sequence, asked, journey, number, seat)
            if number == 1 and self._settings.hedge_after_ms:
                ran = await self._hedged(order, choices, lambda delta: deliver(told.add(delta)), avoid)
            else:
                ran = await self._run(order, choices, lambda delta: deliver(told.add(delta)), first_token)
            attempt, failure, first_token = ran.attempt, ran.failure, ran.first_token
            if failure is None:
                return
            cause = cause or failure
            if attempt.end.final:
                raise cause
            if not failure.spec.retryable or number == self._settings.max_attempts:
                raise failure
            if not self._budget.take(time.monotonic()):
                self._on_no_budget()
                raise failure
            avoid.update(attempt.suspects)
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

    async def _run(self, order: Order, choices: Choices, deliver: Tell, first_token: FirstToken) -> Ran:
        def measuring(end: RoomEnd) -> AbstractContextManager[None]:
            return self._measuring(end, choices, len(order.asked.input_ids))

        return await self._runs.run(order, _team(choices), deliver, first_token, measuring)

    async def _hedged(self, order: Order, choices: Choices, deliver: Tell, avoid: set[WorkerLife]) -> Ran:
        """As `_run`; but other workers are asked too where these say nothing for a while."""
        race = Race[Ran](deliver)

        def another(tell: Tell) -> Coroutine[Any, Any, Ran] | None:
            second = replace(order, seat=Seat(order.seat.tokens))
            rival = self._rival(second, choices)
            return None if rival is None else self._run_rival(second, rival, tell)

        def first(tell: Tell) -> Coroutine[Any, Any, Ran]:
            return self._run(order, choices, tell, FirstToken())

        ran = await race.run(first, another, self._settings.hedge_after_ms / 1000)
        if race.hedged:
            self._on_hedge(race.hedge_won)
        for one in ran[:-1]:
            avoid.update(one.attempt.suspects)
        return ran[-1]

    async def _run_rival(self, order: Order, choices: Choices, deliver: Tell) -> Ran:
        try:
            return await self._run(order, choices, deliver, FirstToken())
        finally:
            self._space.leave(order.seat)

    def _rival(self, order: Order, choices: Choices) -> Choices | None:
        """Workers that have nothing to do with others; None where there are none, or the retry budget is spent."""
        lives = set(lives_of(_team(choices)).values())
        try:
            rival = self.pick(self._wish(order.sequence, order.journey, lives, order.seat))
        except TandemError:
            return None
        if lives & set(lives_of(_team(rival)).values()) or not self._budget.take(time.monotonic()):
            return None
        self._seat(order.seat, rival)
        return rival

    def _seat(self, seat: Seat, choices: Choices) -> None:
        """It is to decode where it was chosen to."""
        self._space.sit(seat, (choices.get(Role.DECODE) or choices[Role.UNIFIED]).worker.life)

    def _wish(self, sequence: Sequence, journey: Journey, avoid: Collection[WorkerLife], seat: Seat) -> Wish:
        tokens, ids = self._settings.prefix_tokens, sequence.input_ids
        return Wish(sequence.model, avoid, journey.session, tokens, ids, self._memo, seat)

    async def _route(self, sequence: Sequence, journey: Journey, avoid: set[WorkerLife], seat: Seat) -> Choices:
        trace = RouteTrace(self._tracing, journey.span, sequence, len(avoid))
        try:
            choices = await self._pick_in_time(self._wish(sequence, journey, avoid, seat))
            self._seat(seat, choices)
        except TandemError as error:
            trace.failed(error)
            raise
        except asyncio.CancelledError:
            trace.failed(TandemError(ErrorReason.CANCELLED, "The request ended while it waited for workers."))
            raise
        facts: dict[str, Value] = {}
        for role, choice in choices.items():
            facts[CANDIDATES[role]] = len(self._workers.crew(role, sequence.model))
            facts[POLICIES[role]] = choice.policy.value
            if choice.policy in BY_HELD_PAGES:
                facts[HELD_TOKENS[role]] = choice.held_tokens
                self._on_held(role, choice.held_tokens)
        trace.chose({role: choice.worker.life for role, choice in choices.items()}, facts)
        return choices

    async def _pick_in_time(self, wish: Wish) -> Choices:
        """As `pick`; but what failed an attempt, or came just before the first, may have hit every Session, so it
        waits for them a while; and for room as long as it takes.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + self._settings.retry_wait_ms / 1000
        while True:
            try:
                picked = self.pick(wish)
                self._on_picked(loop.time() - began)
                return picked
            except TandemError:
                full = self._space.full(wish.model, wish.seat)
                if not full and (loop.time() >= until or not (wish.avoid or self._workers.known(wish.model))):
                    raise
            if full:
                await self._room.wait(wish.model, wish.seat)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._workers.wait_changed()

    def pick(self, wish: Wish) -> Choices:
        """The best team that is whole; of workers that are trusted and have not failed the request, if there is one.

        Raises NO_WORKER.
        """
        unified = self._workers.crew(Role.UNIFIED, wish.model)
        short = self._settings.unified_max_prompt_tokens
        teams = teams_for(self._new_tokens(unified, wish), short, unified_has_place=unified.has_place)
        for only_good in (True, False):
            for roles in teams:
                team = self._alone(unified, wish, only_good) if roles == ALONE else self._pair(wish, only_good)
                if team is not None:
                    return team
        empty = (role for role in (Role.DECODE, Role.PREFILL) if not self._workers.crew(role, wish.model))
        lacking = next(empty, Role.DECODE)
        raise TandemError(ErrorReason.NO_WORKER, f"no {lacking.value} worker can take the request now")

    def _new_tokens(self, unified: Crew[RoutableWorker], wish: Wish) -> int:
        """Tokens of the prompt that a unified worker has still to compute: the one that is known to hold most of it."""
        tokens = len(wish.ids)
        if not unified or self._choosers[Role.UNIFIED].policy not in BY_HELD_PAGES:
            return tokens
        page_size = unified.workers[0].info.layout.page_size
        return tokens - page_size * unified.most_held(self._holders.match(wish.pages(page_size)))

    def _alone(self, unified: Crew[RoutableWorker], wish: Wish, only_good: bool) -> Choices | None:
        choice = self._choose(Role.UNIFIED, unified, self._with_room(Role.UNIFIED, None, wish), wish, only_good)
        return None if choice is None else {Role.UNIFIED: choice}

    def _pair(self, wish: Wish, only_good: bool) -> Choices | None:
        """A decode and a prefill worker whose layouts fit."""
        prefills = self._workers.crew(Role.PREFILL, wish.model)
        decodes = self._workers.crew(Role.DECODE, wish.model)
        fitting = self._with_room(Role.DECODE, decodes.fitting(prefills.layouts), wish)
        policies = self._choosers[Role.PREFILL].policy, self._choosers[Role.DECODE].policy
        if policies == (PolicyName.LEAST_COST, PolicyName.LEAST_COST):
            return self._cheapest(prefills, self._candidates(decodes, fitting, wish, only_good), wish, only_good)
        decode = self._choose(Role.DECODE, decodes, fitting, wish, only_good)
        if decode is None:
            return None
        layouts = decodes.layouts if len(decodes.layouts) == 1 else (decode.worker.info.layout,)
        prefill = self._choose(Role.PREFILL, prefills, prefills.fitting(layouts), wish, only_good)
        return None if prefill is None else {Role.PREFILL: prefill, Role.DECODE: decode}

    def _with_room(self, role: Role, among: Among, wish: Wish) -> Among:
        """Those of a crew that have room for the answer."""
        roomy = self._space.roomy(wish.model, role, wish.seat)
        if roomy is None:
            return among
        return np.flatnonzero(roomy) if among is None else among[roomy[among]]

    def _candidates(self, crew: Crew[RoutableWorker], among: Among, wish: Wish, only_good: bool) -> Candidates:
        """only_good: rather none than one that has failed the request or is not trusted."""
        if not crew.met:
            self._health.meet(crew.lives)
            crew.met = True
        return crew.candidates(among, self._health.exceptional(), wish.avoid, only_good=only_good)

    def _choose(
        self, role: Role, crew: Crew[RoutableWorker], among: Among, wish: Wish, only_good: bool
    ) -> Choice | None:
        """None if there is none."""
        candidates = self._candidates(crew, among, wish, only_good)
        if not candidates:
            return None
        chooser, held, page_size = self._choosers[role], NOTHING_HELD, 0
        policy = chooser.policy
        if policy in BY_HELD_PAGES:
            # Those that fit each other have pages of one size; of any others that there are, nothing is found.
            page_size = crew.of(candidates.lives[0]).info.layout.page_size
            held = self._holders.match(wish.pages(page_size))
        count, cap = chooser.counts[wish.model], self._settings.load_cap
        prefix = wish.prefix if policy in BY_PREFIX else NO_KEY
        turn = Turn(count, self._dice.draw(), wish.session, prefix, cap, held)
        life = choose(policy, candidates, turn, role).life
        chooser.chose(wish.model)
        return Choice(crew.of(life), policy, held.pages_of(life) * page_size if held.most else 0)

    def _cheapest(
        self, prefills: Crew[RoutableWorker], decodes: Candidates, wish: Wish, only_good: bool
    ) -> Choices | None:
        """The pair that costs the prompt least."""
        crew, candidates = (
            self._workers.crew(Role.DECODE, wish.model),
            self._candidates(prefills, None, wish, only_good),
        )
        if not candidates or not decodes:
            return None
        prompt = prompt_of(len(wish.ids), crew.of(decodes.lives[0]).info.layout)
        held = self._holders.match(wish.pages(prompt.page_size))

        def fits(prefill: WorkerLife, decode: WorkerLife) -> bool:
            return layouts_fit(crew.of(decode).info.layout, prefills.of(prefill).info.layout)

        found = self._costs.cheapest(prompt, candidates, decodes, held, fits, self._dice.draw())
        if found is None:
            return None
        prefill, decode = found
        return {
            Role.PREFILL: Choice(prefills.of(prefill.life), PolicyName.LEAST_COST, prefill.held_tokens),
            Role.DECODE: Choice(crew.of(decode.life), PolicyName.LEAST_COST, decode.held_tokens),
        }

    def _measuring(self, end: RoomEnd, choices: Choices, tokens: int) -> AbstractContextManager[None]:
        """What a room of so many tokens shows of its pair's costs, while it runs."""
        if Role.UNIFIED in choices:
            return nullcontext()
        prefill, decode = choices[Role.PREFILL], choices[Role.DECODE]
        prompt = prompt_of(tokens, decode.worker.info.layout)
        lives = (prefill.worker.life, decode.worker.life)
        return running(self._costs, end, prompt, lives, (prefill.held_tokens, decode.held_tokens))


def _team(choices: Choices) -> Team:
    return {role: choice.worker for role, choice in choices.items()}
