"""A prefill rank and a decode rank on one loop, with real links and lanes between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from tandem.core.ids import Incarnation, Nonce, RankId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.room.events import Phase
from tandem.engine.port import Ticket
from tandem.engine.rank.agent import RankAgent, RankSetup, RoomReport
from tandem.engine.rank.handles import RoomHandle
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.settings import RankSettings
from tandem.engine.rank.staging import DIRECT, Staging
from tandem.rdma.api import Buffer

PREFILL = WorkerLife(WorkerId("prefill-0"), Incarnation(3))
DECODE = WorkerLife(WorkerId("decode-0"), Incarnation(4))
NONCE = Nonce(b"0123456789abcdef")
TIMEOUT_S = 10.0


@dataclass
class Memory:
    """Pools of one rank: two KV buffers, one metadata buffer, and two state components.

    The second component has buffers of two sizes, as recurrent states have.
    """

    pages: int = 32
    rows: int = 4
    windows: int = 8
    slots: int = 6
    page_bytes: int = 64
    kv: tuple[np.ndarray, ...] = field(init=False)
    metadata: np.ndarray = field(init=False)
    state: np.ndarray = field(init=False)
    recurrent: tuple[np.ndarray, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.kv = tuple(np.zeros((self.pages, self.page_bytes), np.uint8) for _ in range(2))
        self.metadata = np.zeros((self.rows, 16), np.uint8)
        self.state = np.zeros((self.windows, 24), np.uint8)
        self.recurrent = tuple(np.zeros((self.slots, size), np.uint8) for size in (40, 8))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of it."""
        return (*self.kv, self.metadata, self.state, *self.recurrent)

    def staged(self) -> tuple[tuple[Pool, ...], Staging]:
        """The pools as the agent wants them, and what lies between them and these arrays."""
        return self.pools(), DIRECT

    def pools(self) -> tuple[Pool, ...]:
        """As the engine has them."""
        return (
            Pool("kv", tuple(_buffer(a) for a in self.kv), (self.page_bytes, self.page_bytes), self.pages),
            Pool("metadata", (_buffer(self.metadata),), (16,), self.rows),
            Pool("state:0:swa", (_buffer(self.state),), (24,), self.windows),
            Pool("state:1:mamba", tuple(_buffer(a) for a in self.recurrent), (40, 8), self.slots),
        )


def _buffer(array: np.ndarray) -> Buffer:
    return Buffer(array.ctypes.data, array.nbytes)


@dataclass
class Side:
    """One rank and its memory."""

    agent: RankAgent
    memory: Memory
    ended: list[RoomReport]


@dataclass
class Pair:
    """Both ranks."""

    prefill: Side
    decode: Side
    address: str

    def ticket(self, room: int, side: str, *, timeout_s: float = 5.0, nonce: Nonce = NONCE) -> Ticket:
        """A ticket of a room, as the service of one side opens it."""
        return Ticket(
            room=RoomId(room),
            nonce=nonce,
            peer=DECODE if side == "prefill" else PREFILL,
            peer_address="" if side == "prefill" else self.address,
            deadline=asyncio.get_running_loop().time() + timeout_s,
            prompt_tokens=16,
        )

    async def open_echo(self) -> None:
        """Returns once prefill has read everything that decode had sent: a second room went there and back."""
        await self.open(999)
        sender, receiver = self.prefill.agent.sender(RoomId(999)), self.decode.agent.receiver(RoomId(999))
        await reached(receiver, Phase.WAITING)
        receiver.offer([0], metadata_row=0)
        await reached(sender, Phase.WAITING)

    async def open(self, room: int, *, timeout_s: float = 5.0) -> None:
        """Opens a room on both sides."""
        await self.prefill.agent.open_ticket(self.ticket(room, "prefill", timeout_s=timeout_s))
        await self.decode.agent.open_ticket(self.ticket(room, "decode", timeout_s=timeout_s))


async def reached(handle: RoomHandle, *phases: Phase) -> Phase:
    """Waits until a room is in one of the phases, by its own news."""
    news = asyncio.Event()
    handle.on_change = news.set
    async with asyncio.timeout(TIMEOUT_S):
        while handle.phase not in phases:
            news.clear()
            await news.wait()
    return handle.phase


@contextlib.asynccontextmanager
async def pair(
    provider: str = "tcp",
    *,
    decode: RankSettings | None = None,
    prefill: RankSettings | None = None,
    memories: tuple[Memory, Memory] | None = None,
) -> AsyncIterator[Pair]:
    """Two started and identified ranks. memories: of prefill and of decode."""
    memories = memories or (Memory(), Memory(pages=48, windows=12, slots=3))
    sides = []
    for role, settings, memory in zip((Role.PREFILL, Role.DECODE), (prefill, decode), memories, strict=True):
        pools, staging = memory.staged()
        layout = KvLayout(8, "uint8", 1, "nhd", 1, 1, tuple(pool.layout for pool in pools))
        ended: list[RoomReport] = []
        chosen = settings or RankSettings.load(providers=provider)
        setup = RankSetup(role, RankId(), layout, pools, chosen, staging)
        sides.append(Side(RankAgent(setup, on_room_ended=ended.append), memory, ended))
    try:
        info = await sides[0].agent.start()
        await sides[1].agent.start()
        sides[0].agent.identify(PREFILL)
        sides[1].agent.identify(DECODE)
        yield Pair(sides[0], sides[1], info.kv_link_address)
    finally:
        for side in reversed(sides):
            await side.agent.close()


__all__ = ["DECODE", "PREFILL", "Memory", "Pair", "pair", "reached"]
