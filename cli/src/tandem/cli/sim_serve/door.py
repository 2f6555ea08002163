"""The gateway's admission on the virtual clock: accounts of tenants, the fair queue and decode's pages, all of
tandem.core, in the order in which the gateway asks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.jobs import Job
from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import TandemError
from tandem.core.fair_queue import Ask, FairQueue, QueueLimits, State, Ticket
from tandem.core.page_ledger import Seat
from tandem.core.refusals import Refusal, Refused
from tandem.core.tenants import Account, Tenant

TOO_LONG: Final = "too_long"
"""What the counts call requests that no worker could ever hold."""
DEADLINE: Final = "deadline_exceeded"
"""What they call those that ended too late."""
_NO_LIMIT: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Doorkeeping:
    """Limits of the gateway: without an end where they are those of one process, else as by default there."""

    limits: QueueLimits = field(default_factory=partial(QueueLimits, _NO_LIMIT, _NO_LIMIT))
    decode_commit: float = 1.0
    """How often decode's pages are given away; 0 = without a bound."""


class Door:
    """Lets requests in when it is their turn."""

    def __init__(
        self, agenda: Agenda, keeping: Doorkeeping, space: DecodeSpace, largest: int, enter: Callable[[Job], None]
    ) -> None:
        """space: where answers live. largest: tokens of the longest that a worker could hold. enter: takes a request
        that has its place, and chooses its workers."""
        self.turned_away: Counter[str] = Counter()
        """Requests that got no answer, by reason."""
        self._agenda = agenda
        self._enter = enter
        self._largest = largest
        self._queue = FairQueue(keeping.limits, space)
        self._accounts: dict[str, Account] = {}
        self._waiting: dict[Ticket, Job] = {}

    @property
    def idle(self) -> bool:
        """Whether nobody has a place and nobody waits."""
        return not (self._queue.used or self._queue.waiting or self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._queue.waiting

    def look_again(self) -> None:
        """More may fit than before."""
        self._let_in(self._queue.pump(self._agenda.now))

    def knock(self, job: Job) -> None:
        """A request comes: it enters now or later, or is turned away."""
        try:
            self._admit(job)
        except Refused as refused:
            self.turned_away[refused.refusal.value] += 1
        except TandemError as error:
            self.turned_away[error.reason.value.lower()] += 1

    def left(self, job: Job) -> bool:
        """A request that had a place is over. Returns whether it was in time."""
        assert job.ticket is not None, "it has a place"
        now, in_time = self._agenda.now, self._agenda.now <= job.ticket.ask.deadline
        if not in_time:
            self.turned_away[DEADLINE] += 1
        self._let_in(self._queue.leave(job.ticket, now))
        return in_time

    def _admit(self, job: Job) -> None:
        """Raises Refused, or INVALID_ARGUMENT for what can never be."""
        now, client = self._agenda.now, job.ask.client
        cost = job.prompt_tokens + job.ask.new_tokens
        account = self._account_of(client.tenant, now)
        account.count_request(now)
        if cost > self._largest:
            self.turned_away[TOO_LONG] += 1
            return
        account.charge(cost, now, now)
        tenant = client.tenant
        ask = Ask(
            tenant.name,
            cost,
            1,
            tenant.priority,
            job.ask.at_s + client.timeout_s,
            tenant.weight,
            tenant.max_concurrent,
            seats=(Seat(cost),),
        )
        try:
            job.ticket = ticket = self._queue.offer(ask, now)
        except TandemError:
            account.give_back(cost, now, now)
            raise
        for displaced in ticket.displaced:
            self._turn_away(displaced, Refusal.DISPLACED)
        if ticket.state is State.GRANTED:
            self._enter(job)
            return
        self._waiting[ticket] = job
        if client.timeout_s < float("inf"):
            self._agenda.at(ask.deadline, partial(self._expire, ticket))

    def _account_of(self, tenant: Tenant, now: float) -> Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant, now)
        return account

    def _expire(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._turn_away(ticket, Refusal.EXPIRED)
            self._let_in(self._queue.leave(ticket, self._agenda.now))

    def _turn_away(self, ticket: Ticket, why: Refusal) -> None:
        del self._waiting[ticket]
        self.turned_away[why.value] += 1
        now = self._agenda.now
        self._accounts[ticket.ask.tenant].give_back(ticket.ask.cost, now, now)

    def _let_in(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._enter(self._waiting.pop(ticket))
