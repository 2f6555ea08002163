"""How the bytes of a chunk move and land: what each provider reads, writes, checks and can stop.

tcp: the sender's process reads, the receiver's lands what its open grant allows. A chunk has moved when it is sent.
cma: the receiver's process does both at once, while its grant is open and the sender has not cancelled.
verbs: cards read and write by themselves, also while a process is stopped, and no grant is asked; the range was
checked by the sender's library. A cancel stops what is not read yet; only a fence of the receiver's stops what is on
its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.cli.sim.life import Life
from tandem.cli.sim.memory import GARBAGE, Kv
from tandem.cli.sim.network import Network
from tandem.cli.sim.weather import Faults
from tandem.core.ids import ChunkIndex, GrantId, RoomId

READ_S = 0.2
LAND_S = 0.4


class Provider(Enum):
    """Landing semantics that are modelled."""

    TCP = "tcp"
    CMA = "cma"
    VERBS = "verbs"


@dataclass(slots=True)
class Grant:
    """Pages of one room that may be written, on one life of a decode worker."""

    grant_id: GrantId
    room: RoomId
    life: Life
    pages: tuple[int, ...]
    seen: Callable[[ChunkIndex, int, int], None]
    """Tells the receiver of a whole chunk: number, pages, checksum of what is in its memory."""
    open: bool = True
    """The receiver takes what comes (tcp, cma)."""
    fenced: bool = False
    """Nothing of it is on its way any more (verbs)."""
    ended: bool = False
    """The room has ended: nothing may land."""


@dataclass(slots=True)
class Chunk:
    """One chunk on its way: pairs of a source page and a destination page."""

    index: ChunkIndex
    room: RoomId
    source: Life
    grant: Grant
    pairs: tuple[tuple[int, int], ...]
    moved: Callable[[int], None]
    """Tells the sender, with the checksum of what it read."""
    broken: Callable[[str], None]
    """Tells the sender that the chunk will not arrive; more than once, perhaps."""
    cancelled: bool = False
    read: dict[int, Kv] = field(default_factory=dict)
    landed: int = 0


class Mover:
    """Moves chunks from life to life."""

    enforces = True
    """Whether ranges are held against the grant; a planted bug turns it off."""

    def __init__(self, agenda: Agenda, network: Network, faults: Faults, provider: Provider) -> None:
        self._agenda = agenda
        self._network = network
        self._faults = faults
        self._provider = provider

    def start(self, chunk: Chunk) -> None:
        """Begins to move a chunk. What becomes of it is told by its callbacks."""
        if self._provider is Provider.VERBS and self.enforces and not self._inside(chunk):
            chunk.broken("a range is outside the grant")
            return
        breaks = self._faults.happens("lane_failure")
        survivors = len(chunk.pairs) - 1 if breaks else len(chunk.pairs)
        for number, pair in enumerate(chunk.pairs):
            if number < survivors:
                self._agenda.soon(READ_S, f"page {pair} of room {chunk.room} is read", self._reader(chunk, pair))
        if breaks:
            self._agenda.soon(READ_S, f"lane of room {chunk.room} fails", lambda: chunk.broken("the lane failed"))

    def _reader(self, chunk: Chunk, pair: tuple[int, int]) -> Callable[[], None]:
        source, target = chunk.source, chunk.grant.life

        def read() -> None:
            by = {Provider.TCP: source, Provider.CMA: target}.get(self._provider)
            if by is not None and by.stopped:
                by.when_it_goes_on(read)
                return
            if chunk.cancelled or not source.alive:
                return
            if self._provider is Provider.CMA and not self._takes(chunk, pair[1]):
                return
            content = source.pool.read(chunk.room, pair[0])
            assert content is not None, "a page is moved before it was computed"
            chunk.read[pair[0]] = content
            if self._provider is Provider.CMA:
                self._write(chunk, pair)
                return
            if self._provider is Provider.TCP and len(chunk.read) == len(chunk.pairs):
                chunk.moved(checksum([chunk.read[page] for page, _ in chunk.pairs]))
            self._agenda.soon(LAND_S, f"page {pair} of room {chunk.room} comes", land)

        def land() -> None:
            if self._provider is Provider.TCP and target.stopped:
                target.when_it_goes_on(land)
            elif not self._network.reaches(source.worker_id, target.worker_id):
                chunk.broken("the way is cut")
            elif self._takes(chunk, pair[1]):
                self._write(chunk, pair)

        return read

    def _takes(self, chunk: Chunk, page: int) -> bool:
        """Whether a page may land now; if not, the sender hears of it where its connection lives."""
        grant = chunk.grant
        by_card = self._provider is Provider.VERBS
        if not grant.life.alive or (by_card and grant.fenced):
            chunk.broken("the peer is gone")
        elif not by_card and not grant.open:
            chunk.broken("the grant is closed")
        elif not by_card and self.enforces and page not in grant.pages:
            chunk.broken("a range is outside the grant")
        else:
            return True
        return False

    def _write(self, chunk: Chunk, pair: tuple[int, int]) -> None:
        grant, page = chunk.grant, pair[1]
        if page not in grant.pages:
            raise ViolationError(Invariant.INSIDE_GRANT, f"room {chunk.room} writes page {page}, not in {grant.pages}")
        if grant.ended:
            raise ViolationError(Invariant.QUIET_ABORT, f"page {page} lands for room {chunk.room}, which has ended")
        if grant.life.pool.holder(page) != chunk.room:
            raise ViolationError(Invariant.ONE_WRITER, f"room {chunk.room} writes page {page}, held by another")
        damaged = self._faults.happens("corrupt")
        grant.life.pool.write(page, GARBAGE if damaged else chunk.read[pair[0]])
        chunk.landed += 1
        if chunk.landed == len(chunk.pairs):
            found = checksum([grant.life.pool.peek(page) for _, page in chunk.pairs])
            grant.seen(chunk.index, len(chunk.pairs), found)
            if self._provider is not Provider.TCP:
                chunk.moved(checksum([chunk.read[page] for page, _ in chunk.pairs]))

    @staticmethod
    def _inside(chunk: Chunk) -> bool:
        return all(page in chunk.grant.pages for _, page in chunk.pairs)


def checksum(content: list[Kv | None]) -> int:
    """Of pages in order."""
    return hash(tuple(page or (-2, -2) for page in content))
