"""Both sides of a room on the workers: what the shell does with the effects of tandem.core's machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.cli.sim.landing import Chunk, Grant, Mover
from tandem.cli.sim.life import Life
from tandem.cli.sim.memory import Kv, Prompt
from tandem.cli.sim.network import Network
from tandem.cli.sim.weather import Faults
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId, RoomId, WorkerId, WorkerLife
from tandem.core.pages import rest_of_prompt
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver
from tandem.core.room.sender import Sender

FENCE_S: Final = 1.0
"""Longest time until nothing of a room moves any more."""
GRACE_S: Final = 2.0
"""A side has ended this long after its deadline, or after it goes on."""
COMPUTE_S: Final = 0.3
"""Longest time for a chunk."""
DIAL_S: Final = 0.5
_INSTANT_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Machines:
    """The classes that decide; a planted bug replaces one."""

    sender: type[Sender] = Sender
    receiver: type[Receiver] = Receiver


@dataclass(frozen=True, slots=True)
class Offered:
    """Decode's offer on its way: the machine's input, and what the shell needs besides."""

    grant: Grant
    prefix: int = 0
    """First pages of the prompt that decode holds already."""


class Post(Protocol):
    """Hands what has arrived at a worker to its room there, if there is one."""

    def __call__(self, worker_id: WorkerId, room: RoomId, message: ev.Input | Offered) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every side of a run shares."""

    agenda: Agenda
    network: Network
    mover: Mover
    faults: Faults
    machines: Machines
    post: Post
    succeeded: set[RoomId] = field(default_factory=set)
    """Rooms whose decode side has ended well."""
    not_moved: Counter[WorkerId] = field(default_factory=Counter)
    """Pages that needed no move, by the decode worker that held them."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One attempt, as both legs get it."""

    room: RoomId
    prompt: Prompt
    chunks: tuple[int, ...]
    """Pages of each chunk."""
    deadline: float
    prefill: WorkerLife
    decode: WorkerLife

    def pages_of(self, chunk: int) -> range:
        """Which pages of the prompt a chunk has."""
        first = sum(self.chunks[:chunk])
        return range(first, first + self.chunks[chunk])


class Report(Protocol):
    """What a leg tells its gateway; `answer` is what decode read from its pages."""

    def __call__(self, room: RoomId, why: ev.Why | None, answer: Sequence[Kv | None]) -> None: ...


@dataclass(slots=True)
class Side(ABC):
    """What both sides have in common: one machine, fed in order, that ends once and in time."""

    around: Surroundings
    life: Life
    ticket: Ticket
    machine: Sender | Receiver
    report: Report
    closed: Callable[[RoomId], None]
    """Takes the room off its worker."""
    ended: bool = False

    def begin(self) -> None:
        """Sets the clock."""
        agenda, room = self.around.agenda, self.ticket.room
        left_s = max(0.0, self.ticket.deadline - agenda.now)
        agenda.after(left_s, f"{self.life}: deadline of room {room}", lambda: self.step(ev.Tick()))
        agenda.after(left_s + GRACE_S, f"{self.life}: room {room} must have ended", self._must_have_ended)

    def step(self, event: ev.Input) -> None:
        """One input, as soon as the process runs."""
        self.life.when_it_goes_on(lambda: self._step(event))

    def _step(self, event: ev.Input) -> None:
        before = self.machine.phase
        for effect in self.machine.step(event, self.around.agenda.now):
            self.carry_out(effect)
        if before is ev.Phase.BOOTSTRAPPING and self.machine.phase is ev.Phase.WAITING:
            self.engine_goes_on()

    @abstractmethod
    def engine_goes_on(self) -> None:
        """What the engine does when the other side is ready."""

    @abstractmethod
    def has_ended(self, why: ev.Why | None) -> None:
        """What comes with the end that the machine has reached."""

    def carry_out(self, effect: ev.Effect) -> None:
        """Does what the machine wants. Here: what both sides do alike."""
        match effect:
            case ev.SendAbort(why):
                self.tell(ev.PeerAborted(why))
            case ev.SendAbortAck():
                self.tell(ev.PeerQuiet())
            case ev.Ended(why):
                self.has_ended(why)
            case ev.Refused():
                pass
            case _:
                raise AssertionError(f"{self.life}'s shell does not know {effect}")

    @property
    def peer(self) -> WorkerLife:
        """The worker of the other side."""
        ticket = self.ticket
        return ticket.decode if self.life.worker_id == ticket.prefill.worker_id else ticket.prefill

    def tell(self, message: ev.Input | Offered) -> None:
        """A message to the other side."""
        room, peer, post = self.ticket.room, self.peer.worker_id, self.around.post
        note = f"room {room} {type(message).__name__}"
        self.around.network.send(self.life.worker_id, peer, note, lambda: post(peer, room, message))

    def quiet(self, done: Callable[[], None], why: ev.Why | None = None) -> None:
        """Fences: some time later nothing moves any more."""

        def fenced() -> None:
            done()
            self._step(ev.Quiet(why))

        note = f"{self.life}: room {self.ticket.room} is quiet"
        self.around.agenda.soon(FENCE_S, note, lambda: self.life.when_it_goes_on(fenced))

    def end(self, why: ev.Why | None) -> None:
        """The one end: pages go back."""
        if self.ended:
            raise ViolationError(Invariant.ONE_END, f"room {self.ticket.room} ends again on {self.life}: {why}")
        self.ended = True
        self.closed(self.ticket.room)
        self.life.pool.release(self.ticket.room)
        self.life.rows.release(self.ticket.room)

    def _must_have_ended(self) -> None:
        if self.ended or not self.life.alive:
            return
        agenda = self.around.agenda
        left_s = max(self.ticket.deadline, self.life.runs_since) + GRACE_S - agenda.now
        if left_s > _INSTANT_S:
            agenda.after(left_s, f"{self.life}: room {self.ticket.room} must have ended", self._must_have_ended)
            return
        text = f"room {self.ticket.room} is still {self.machine.state.value} on {self.life}"
        raise ViolationError(Invariant.ONE_END, text)


@dataclass(slots=True)
class PrefillSide(Side):
    """Computes chunk by chunk, and moves what is finished."""

    grant: Grant | None = None
    prefix: int = 0
    source: tuple[int, ...] = ()
    parts: list[list[int]] = field(default_factory=list)
    """Pages of the prompt in each chunk that is moved: those behind the prefix."""
    moving: list[Chunk] = field(default_factory=list)

    def offered(self, offer: Offered) -> None:
        """Decode's offer has come."""
        if self.grant is None:
            self.grant, self.prefix = offer.grant, offer.prefix
            if rest_of_prompt(len(self.ticket.prompt), offer.prefix, page_size=1) != len(offer.grant.pages):
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{offer} is not the rest of {self.ticket.prompt}")
        self.step(ev.Offer(offer.grant.grant_id))

    def engine_goes_on(self) -> None:
        """Takes pages and computes; without pages the room fails."""
        source = self.life.pool.reserve(self.ticket.room, len(self.ticket.prompt))
        if source is None:
            self.step(ev.Broken(ev.Why(ErrorReason.POOL_EXHAUSTED, "prefill has no pages")))
            return
        self.source = source
        self._compute(0)

    def _compute(self, number: int) -> None:
        def computed() -> None:
            if self.ended or self.machine.phase in (ev.Phase.SUCCESS, ev.Phase.FAILED):
                return
            for index in self.ticket.pages_of(number):
                self.life.pool.write(self.source[index], self.ticket.prompt[index])
            last = number == len(self.ticket.chunks) - 1
            if part := [index for index in self.ticket.pages_of(number) if index >= self.prefix]:
                self.parts.append(part)
                self.step(ev.ChunkReady(ChunkIndex(len(self.parts) - 1), last))
            if not last:
                self._compute(number + 1)

        note = f"{self.life}: room {self.ticket.room} chunk {number} is computed"
        self.around.agenda.soon(COMPUTE_S, note, lambda: self.life.when_it_goes_on(computed))

    def carry_out(self, effect: ev.Effect) -> None:
        """Moves, claims, cancels; the rest as both sides."""
        match effect:
            case ev.StartTransfer(chunk):
                self._move(chunk)
            case ev.SendChunkDone(chunk, size, checksum):
                self.tell(ev.ChunkClaimed(self._grant_id, chunk, size, checksum))
            case ev.SendComplete(chunks, size):
                self.tell(ev.CompleteClaimed(self._grant_id, chunks, size))
            case ev.Fence():
                self.quiet(self._cancel)
            case _:
                Side.carry_out(self, effect)

    @property
    def _grant_id(self) -> GrantId:
        return self.grant.grant_id if self.grant else GrantId(0)

    def _move(self, index: ChunkIndex) -> None:
        grant = self.grant
        assert grant is not None, "a transfer before the offer"
        pairs = [(self.source[number], grant.pages[number - self.prefix]) for number in self.parts[index]]
        if self.around.faults.happens("stray_write"):
            outside = [page for page in range(grant.life.pool.total) if page not in grant.pages]
            pairs[-1] = (pairs[-1][0], self.around.agenda.dice.choice(outside))
        size = len(pairs)

        def broken(why: str) -> None:
            self.step(ev.Broken(ev.Why(ErrorReason.TRANSFER_FAILED, why)))

        def moved(checksum: int) -> None:
            self.step(ev.ChunkMoved(index, size, checksum))

        chunk = Chunk(index, self.ticket.room, self.life, grant, tuple(pairs), moved, broken)
        self.moving.append(chunk)
        self.around.mover.start(chunk)

    def _cancel(self) -> None:
        for chunk in self.moving:
            chunk.cancelled = True

    def has_ended(self, why: ev.Why | None) -> None:
        if why is None and self.ticket.room not in self.around.succeeded:
            raise ViolationError(Invariant.ONE_END, f"prefill of room {self.ticket.room} succeeded, decode did not")
        self.end(why)
        if why is not None:
            self.report(self.ticket.room, why, ())


@dataclass(slots=True)
class DecodeSide(Side):
    """Reserves pages, waits for the KV, and answers from it."""

    grant: Grant | None = None
    prefix: tuple[int, ...] = ()
    """Kept pages that the prompt begins with."""
    waits_for_pages: Callable[[DecodeSide], None] = lambda side: None
    """Asks the worker to call `reserve` again when pages were given back."""

    def engine_goes_on(self) -> None:
        """Pages and a metadata row, or a place in the queue for them."""
        self.reserve()

    def reserve(self) -> None:
        """Takes what it needs if that is there."""
        if self.grant is not None or self.machine.phase is not ev.Phase.WAITING:
            return
        room, life = self.ticket.room, self.life
        row = life.rows.reserve(room, 1)
        # The last page is moved in any case: that stands for the first token, which always is.
        prefix = life.pool.hold(room, self.ticket.prompt[:-1]) if row else ()
        pages = life.pool.reserve(room, len(self.ticket.prompt) - len(prefix)) if row else None
        if pages is None:
            life.rows.release(room)
            life.pool.release(room)
            self.waits_for_pages(self)
            return
        grant_id = GrantId(self.around.agenda.dice.getrandbits(62) + 1)

        def seen(index: ChunkIndex, size: int, checksum: int) -> None:
            self.step(ev.ChunkSeen(grant_id, index, size, checksum))

        self.prefix = prefix
        self.grant = Grant(grant_id, room, life, pages, seen)
        self.step(ev.PagesReserved(self.grant.grant_id, len(pages)))

    def carry_out(self, effect: ev.Effect) -> None:
        """Offers, closes, fences; the rest as both sides."""
        match effect:
            case ev.SendOffer():
                assert self.grant is not None, "an offer of nothing"
                self.tell(Offered(self.grant, len(self.prefix)))
            case ev.SendLanded(grant_id):
                self.tell(ev.LandedByPeer(grant_id))
            case ev.Fence():
                self._close()
                self.quiet(self._fenced)
            case ev.CloseGrant():
                self._close()
                lost = self.around.faults.happens("hand_in_failure")
                why = ev.Why(ErrorReason.TRANSFER_FAILED, "no copy to the device") if lost else None
                self.quiet(self._fenced, why)
            case _:
                Side.carry_out(self, effect)

    def _close(self) -> None:
        if self.grant is not None:
            self.grant.open = False

    def _fenced(self) -> None:
        if self.grant is not None:
            self.grant.fenced = True

    def has_ended(self, why: ev.Why | None) -> None:
        answer: list[Kv | None] = []
        if self.grant is not None and not self.ended:
            self.grant.ended = True
            pages = (*self.prefix, *self.grant.pages)
            answer = [self.life.pool.read(self.ticket.room, page) for page in pages]
            if self.may_keep(why):
                self.life.pool.keep(self.ticket.room, self.ticket.prompt, pages)
        if why is None:
            self.around.succeeded.add(self.ticket.room)
            self.around.not_moved[self.life.worker_id] += len(self.prefix)
        self.end(why)
        self.report(self.ticket.room, why, answer if why is None else ())

    @staticmethod
    def may_keep(why: ev.Why | None) -> bool:
        """Whether later prompts that begin alike get these pages: not of a room that failed."""
        return why is None
