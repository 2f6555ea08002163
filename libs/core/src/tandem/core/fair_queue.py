"""A bounded queue in front of a bounded number of places, fair between tenants and by class of priority.

Pure: time is handed in, in monotonic seconds. Fairness is start-time fair queueing by the cost of requests in tokens,
twice: between the classes, by weights so far apart that a higher class nearly always goes first and yet none starves;
and within a class between tenants, by theirs. A tenant that may have no more places, or whose next request does not fit
yet, is passed over and keeps its turn. A request that was passed over for `patience_s` gets what comes free: of places
all, of other space as much as is put aside for it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.page_ledger import Seat
from tandem.core.refusals import Refusal, Refused
from tandem.core.service_rate import ServiceRate


class Priority(Enum):
    """Classes of requests, the most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    __hash__ = object.__hash__  # Enum's own is written in Python, and each turn looks its class up several times


CLASS_WEIGHTS: Final = MappingProxyType({Priority.HIGH: 64.0, Priority.NORMAL: 8.0, Priority.LOW: 1.0})
"""Shares of the classes while all of them have something waiting."""
RANKS: Final = MappingProxyType({priority: rank for rank, priority in enumerate(Priority)})
"""0 is the most urgent."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What the queue may hold, and what may run behind it."""

    places: int
    """Sequences that run at the same time."""
    max_waiting: int
    """Requests that wait; 0 = none, who gets no place at once is refused."""
    max_waiting_cost: int = 1 << 62
    """Tokens of all that wait. One request may wait alone, whatever it costs."""
    patience_s: float = 2.0
    """How long others may overtake a request that does not fit yet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants."""

    tenant: str
    cost: int
    """Tokens of its prompts, and those that it may generate; at least 1."""
    places: int = 1
    """Sequences that it runs."""
    priority: Priority = Priority.NORMAL
    deadline: float = math.inf
    """Monotonic seconds, after which it gets no place."""
    weight: float = 1.0
    """Share of its tenant, above 0."""
    most: int = 0
    """Places that its tenant may have; 0 = all."""
    pool: str = ""
    """What besides places it needs: requests of one pool compete for the same, others do not."""
    seats: tuple[Seat, ...] = ()
    """One for each sequence: where it is in that pool."""

    @property
    def largest(self) -> int:
        """Tokens of its largest sequence."""
        return max((seat.tokens for seat in self.seats), default=0)


class Space(Protocol):
    """What requests need besides a place."""

    def require_possible(self, ask: Ask) -> None:
        """Raises TandemError if there could never be enough of it."""

    def fits(self, ask: Ask) -> bool:
        """Whether there is enough of it now."""

    def take(self, ask: Ask) -> None:
        """A request has its place."""

    def give(self, ask: Ask) -> None:
        """It has ended."""

    def put_aside(self, ask: Ask) -> None:
        """Keeps as much as a request needs from all others, also while it does not fit yet."""

    def put_back(self) -> None:
        """Ends that for all requests."""

    def settle(self) -> None:
        """What is put aside now stays so for a while."""


class Boundless:
    """Space without an end."""

    def require_possible(self, ask: Ask) -> None:
        """All is possible."""

    def fits(self, ask: Ask) -> bool:
        """It does."""
        return True

    def take(self, ask: Ask) -> None:
        """Nothing is missed."""

    def give(self, ask: Ask) -> None:
        """Nothing is gained."""

    def put_aside(self, ask: Ask) -> None:
        """There is enough for all."""

    def put_back(self) -> None:
        """Nothing was kept."""

    def settle(self) -> None:
        """Nothing is."""


class State(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    GRANTED = "granted"
    DISPLACED = "displaced"
    """It lost its place in the queue to a request with more right to it."""
    EXPIRED = "expired"
    LEFT = "left"


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in the queue or behind it."""

    ask: Ask
    since: float
    """When it came, in monotonic seconds."""
    state: State = State.WAITING
    passed_at: float | None = None
    """Since when others overtake it as it does not fit."""
    displaced: tuple[Ticket, ...] = ()
    """Those that had to go as this one came."""


_K = TypeVar("_K", bound=Hashable)


class _Turns(Generic[_K]):
    """Start-time fair queueing: whose turn it is among those that have something waiting. Keys are never forgotten:
    there are as many as the settings name."""

    __slots__ = ("_tags", "_time")

    def __init__(self) -> None:
        self._time = 0.0
        self._tags: dict[_K, float] = {}

    def join(self, key: _K) -> None:
        """A key has something waiting. What it did not use while it had nothing is lost to it."""
        self._tags[key] = max(self._time, self._tags.get(key, 0.0))

    def served(self, key: _K, amount: float) -> None:
        """Charges a key. amount: cost by weight."""
        tag = self._tags[key]
        self._time = max(self._time, tag)
        self._tags[key] = tag + amount

    def order(self, keys: Iterable[_K]) -> list[_K]:
        """Keys that have joined, whose turn it is first."""
        return sorted(keys, key=self._tags.__getitem__)


@dataclass(slots=True)
class _Flow:
    """What waits of one tenant in one class."""

    tickets: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)
    cost: int = 0
    weight: float = 1.0
    """As its last request said."""


class _Band:
    """One class."""

    __slots__ = ("flows", "turns")

    def __init__(self) -> None:
        self.flows: dict[str, _Flow] = {}
        """Those with something waiting."""
        self.turns: _Turns[str] = _Turns()


@dataclass(slots=True)
class _Holding:
    """What one flow holds of the queue, while it is decided who has to go."""

    rank: int
    weight: float
    cost: int
    newest: Iterator[Ticket]

    @property
    def key(self) -> tuple[int, float]:
        """The larger, the sooner it has to go."""
        return self.rank, self.cost / self.weight


class FairQueue:
    """The queue and the places behind it."""

    def __init__(self, limits: QueueLimits, space: Space | None = None) -> None:
        """space: what requests need besides places; without an end if None."""
        self.limits = limits
        self.used = 0
        """Places taken."""
        self.waiting = 0
        """Requests that wait."""
        self.waiting_cost = 0
        """Tokens of those."""
        self.rate = ServiceRate()
        self._space = space or Boundless()
        self._bands = {priority: _Band() for priority in Priority}
        self._turns: _Turns[Priority] = _Turns()
        self._running: dict[str, int] = {}
        self._places_held = False
        """Whether places are kept for a request that was passed over for too long."""
        self._busy_since: float | None = None
        """Since when something waits, or the rate was told of it."""

    def offer(self, ask: Ask, now: float) -> Ticket:
        """Takes a request in; it may have its place at once. Those that it displaces are in the ticket.

        Raises INVALID_ARGUMENT if it could never run; Refused, with the time to come back, if there is no room for
        it or if it would be too late when its turn comes.
        """
        self._require_possible(ask)
        ticket = Ticket(ask, now)
        if self._goes_at_once(ask) and now < ask.deadline:
            self._join(ask)
            self._grant(ticket)
            return ticket
        ahead_s = self._wait_s(ask)
        if ahead_s is not None and now + ahead_s > ask.deadline:
            raise Refused(
                Refusal.TOO_LATE,
                f"Its turn would come in {ahead_s:.1f} s, when its time is over. Allow it more, or come back later.",
                retry_after_s=ahead_s,
            )
        ticket.displaced = self._make_way(ask)
        self._enqueue(ticket)
        if self._busy_since is None:
            self._busy_since = now
        return ticket

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A request has ended, or does not want to wait any more. Returns those that get a place by that."""
        if ticket.state is State.GRANTED:
            self._space.give(ticket.ask)
            self.used -= ticket.ask.places
            left = self._running[ticket.ask.tenant] - ticket.ask.places
            if left:
                self._running[ticket.ask.tenant] = left
            else:
                del self._running[ticket.ask.tenant]
        elif ticket.state is State.WAITING:
            self._remove(ticket)
        ticket.state = State.LEFT
        if self.waiting:
            return self.pump(now)
        self._keep_nothing()
        self._space.settle()
        return []

    def pump(self, now: float) -> list[Ticket]:
        """Gives places to those whose turn it is; to be called when more fits than before."""
        granted: list[Ticket] = []
        kept: set[Ticket] = set()
        self._keep_nothing()
        while self.waiting and self.used < self.limits.places:
            ticket = self._next(now, kept)
            if ticket is None:
                break
            self._remove(ticket)
            self._grant(ticket)
            granted.append(ticket)
        self._space.settle()
        self._note_rate(sum(ticket.ask.cost for ticket in granted), len(granted), now)
        return granted

    def _keep_nothing(self) -> None:
        self._places_held = False
        self._space.put_back()

    def waiting_of(self, priority: Priority) -> int:
        """Requests of a class that wait."""
        return sum(len(flow.tickets) for flow in self._bands[priority].flows.values())

    def _wait_s(self, ask: Ask, extra: int = 0) -> float | None:
        """How long a request that comes now would wait, by the rate of late; None if nothing is known. extra: tokens
        that have to go before, besides those that wait.

        What waits of its tenant goes by its tenant's share; and when all that waits is gone, its own is.
        """
        per_s = self.rate.per_s
        if per_s is None:
            return None
        flows = self._bands[ask.priority].flows
        own = flows.get(ask.tenant)
        others = sum(flow.weight for flow in flows.values()) - (own.weight if own else 0.0)
        classes = {priority for priority, band in self._bands.items() if band.flows} | {ask.priority}
        share = ask.weight / (others + ask.weight)
        share *= CLASS_WEIGHTS[ask.priority] / sum(CLASS_WEIGHTS[priority] for priority in classes)
        ahead = (own.cost if own else 0) + extra
        return min(ahead / share, self.waiting_cost + extra) / per_s

    def _require_possible(self, ask: Ask) -> None:
        most = min(ask.most or self.limits.places, self.limits.places)
        if ask.places > most:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"'n' times the number of prompts is {ask.places} answers at once; at most {most} are allowed."
                " Split it over several requests.",
                field="n",
            )
        self._space.require_possible(ask)

    def _goes_at_once(self, ask: Ask) -> bool:
        """Whether it takes nothing from those that wait: none of them fits."""
        band = self._bands[ask.priority]
        return not self._places_held and ask.tenant not in band.flows and self._eligible(ask) and self._room_for(ask)

    def _eligible(self, ask: Ask) -> bool:
        return not ask.most or self._running.get(ask.tenant, 0) + ask.places <= ask.most

    def _room_for(self, ask: Ask) -> bool:
        return self.used + ask.places <= self.limits.places and self._space.fits(ask)

    def _next(self, now: float, kept: set[Ticket]) -> Ticket | None:
        """Whose turn it is. kept: those that space was put aside for."""
        for head in self._heads(now):
            ask = head.ask
            if head in kept or not self._eligible(ask):
                continue
            if self._room_for(ask):
                return head
            if head.passed_at is None:
                head.passed_at = now
            if now - head.passed_at < self.limits.patience_s:
                continue
            if self.used + ask.places > self.limits.places:
                self._places_held = True
                return None
            self._space.put_aside(ask)
            kept.add(head)
        return None

    def _heads(self, now: float) -> Iterator[Ticket]:
        """The first of each flow, whose turn it is first. Those whose time is over are dropped."""
        for priority in self._turns.order([priority for priority, band in self._bands.items() if band.flows]):
            band = self._bands[priority]
            for tenant in band.turns.order(band.flows):
                while tenant in band.flows:
                    head = next(iter(band.flows[tenant].tickets))
                    if head.ask.deadline > now:
                        yield head
                        break
                    self._remove(head)
                    head.state = State.EXPIRED

    def _grant(self, ticket: Ticket) -> None:
        ask = ticket.ask
        ticket.state = State.GRANTED
        self._space.take(ask)
        self.used += ask.places
        self._running[ask.tenant] = self._running.get(ask.tenant, 0) + ask.places
        self._turns.served(ask.priority, ask.cost / CLASS_WEIGHTS[ask.priority])
        self._bands[ask.priority].turns.served(ask.tenant, ask.cost / ask.weight)

    def _join(self, ask: Ask) -> None:
        """Before the first request of a flow waits, or goes at once."""
        band = self._bands[ask.priority]
        if not band.flows:
            self._turns.join(ask.priority)
        band.turns.join(ask.tenant)

    def _enqueue(self, ticket: Ticket) -> None:
        ask = ticket.ask
        band = self._bands[ask.priority]
        flow = band.flows.get(ask.tenant)
        if flow is None:
            self._join(ask)
            flow = band.flows[ask.tenant] = _Flow()
        flow.tickets[ticket] = None
        flow.cost += ask.cost
        flow.weight = ask.weight
        self.waiting += 1
        self.waiting_cost += ask.cost

    def _remove(self, ticket: Ticket) -> None:
        ask = ticket.ask
        flows = self._bands[ask.priority].flows
        flow = flows[ask.tenant]
        del flow.tickets[ticket]
        flow.cost -= ask.cost
        if not flow.tickets:
            del flows[ask.tenant]
        self.waiting -= 1
        self.waiting_cost -= ask.cost

    def _make_way(self, ask: Ask) -> tuple[Ticket, ...]:
        """Removes those that have less right to wait than a request that comes. Raises Refused."""
        displaced: list[Ticket] = []
        cost = self.waiting_cost
        flow = self._bands[ask.priority].flows.get(ask.tenant)
        own = (RANKS[ask.priority], ((flow.cost if flow else 0) + ask.cost) / ask.weight)
        victims = self._victims(own)
        while self._full(ask, self.waiting - len(displaced), cost):
            victim = next(victims, None)
            if victim is None:
                raise Refused(
                    Refusal.FULL,
                    f"{self.used} of {self.limits.places} places are taken and {self.waiting} requests wait. Try again"
                    " later.",
                    retry_after_s=self._wait_s(ask, ask.cost),
                )
            displaced.append(victim)
            cost -= victim.ask.cost
        for victim in displaced:
            self._remove(victim)
            victim.state = State.DISPLACED
        return tuple(displaced)

    def _victims(self, own: tuple[int, float]) -> Iterator[Ticket]:
        """The newest of the flows that hold most of the queue, of the lowest class first, while they hold more than
        `own`: rank of a class, cost by weight."""
        holdings = [
            _Holding(RANKS[priority], flow.weight, flow.cost, reversed(flow.tickets))
            for priority, band in self._bands.items()
            for flow in band.flows.values()
        ]
        while holdings:
            most = max(holdings, key=lambda holding: holding.key)
            if most.key <= own:
                return
            victim = next(most.newest, None)
            if victim is None:
                holdings.remove(most)
                continue
            most.cost -= victim.ask.cost
            yield victim

    def _full(self, ask: Ask, waiting: int, cost: int) -> bool:
        limits = self.limits
        return waiting >= limits.max_waiting or (waiting > 0 and cost + ask.cost > limits.max_waiting_cost)

    def _note_rate(self, cost: int, count: int, now: float) -> None:
        if self._busy_since is not None:
            self.rate.saw(cost, count, now - self._busy_since)
            self._busy_since = now if self.waiting else None
