"""A prefill and a decode mock engine in one process, and what a gateway would do with them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem.core.ids import Incarnation, Nonce, RankId, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.room.events import Why
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.rank_port import MakeRank
from tandem.engine.mock.settings import MockSettings
from tandem.engine.port import Delta, EngineStatus, Finish, Job, Sampling
from tests.support.mock.oracle import Oracle

PREFILL = WorkerLife(WorkerId("prefill-1"), Incarnation(1))
DECODE = WorkerLife(WorkerId("decode-1"), Incarnation(2))
INSTANT: dict[str, Any] = {"prefill_us_per_token": 0, "decode_us_per_step": 0, "decode_us_per_sequence": 0}
SMALL: dict[str, Any] = {
    **INSTANT,
    "page_size": 4,
    "pages": 64,
    "metadata_rows": 8,
    "layers": 2,
    "head_bytes": 16,
    "vocab": 1000,
    "context_tokens": 200,
    "chunk_tokens": 64,
    "max_running": 8,
    "max_waiting": 8,
}


def settings_of(**changes: Any) -> MockSettings:
    """Small and instant, with changes."""
    return MockSettings(**{**SMALL, **changes})


def prompt_of(seed: int, tokens: int) -> list[int]:
    """A prompt of random tokens."""
    dice = random.Random(seed)
    return [dice.randrange(1 << 31) for _ in range(tokens)]


def oracle_of(settings: MockSettings) -> Oracle:
    """The oracle of an engine with the built-in vocabulary."""
    return Oracle(
        page_size=settings.page_size,
        layers=settings.layers,
        head_bytes=settings.head_bytes,
        tp_size=settings.tp_size,
        vocab=settings.vocab,
        context_tokens=settings.context_tokens,
    )


@dataclass
class Leg:
    """News of one leg."""

    room: RoomId
    deltas: list[Delta] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def sink(self, delta: Delta) -> None:
        assert not self.ended.is_set(), "news after the Finish"
        assert delta.room == self.room
        self.deltas.append(delta)
        self.began.set()
        if delta.finish is not None:
            self.ended.set()

    async def finish(self) -> Finish:
        await asyncio.wait_for(self.ended.wait(), 20)
        found = self.deltas[-1].finish
        assert found is not None
        return found

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


@dataclass
class Room:
    """Both legs."""

    prefill: Leg
    decode: Leg

    @property
    def room(self) -> RoomId:
        return self.decode.room


class Pair:
    """Two engines that know each other."""

    def __init__(
        self, settings: MockSettings, make_rank: MakeRank | None = None, decode_settings: MockSettings | None = None
    ) -> None:
        self.settings = settings
        self.prefill = MockEngine(settings, Role.PREFILL, make_rank)
        self.decode = MockEngine(decode_settings or settings, Role.DECODE, make_rank)
        self.addresses: dict[RankId, str] = {}
        self._rooms = itertools.count(1)

    async def start(self) -> Pair:
        """Starts both and makes them known to each other."""
        facts = await self.prefill.start()
        await self.decode.start()
        self.addresses = {info.rank: info.kv_link_address for info in facts.ranks}
        self.prefill.identify(PREFILL)
        self.decode.identify(DECODE)
        self.decode.peer_joined(PREFILL, self.addresses)
        return self

    async def close(self) -> None:
        """Ends both."""
        await self.decode.close()
        await self.prefill.close()

    def job(self, role: Role, room: RoomId, prompt: Sequence[int], sampling: Sampling, **changes: Any) -> Job:
        """One leg's job."""
        timeout_s = changes.pop("timeout_s", 30.0)
        fields: dict[str, Any] = {
            "request_id": RequestId(f"request-{room}"),
            "room": room,
            "nonce": Nonce(b"n" * 16),
            "peer": DECODE if role is Role.PREFILL else PREFILL,
            "peer_addresses": {} if role is Role.PREFILL else self.addresses,
            "deadline": time.monotonic() + timeout_s,
            "input_ids": list(prompt),
            "sampling": sampling,
        }
        return Job(**{**fields, **changes})

    def new_room(self) -> RoomId:
        """A room that was not used before."""
        return RoomId(next(self._rooms))

    async def ask(self, prompt: Sequence[int], sampling: Sampling, **changes: Any) -> Room:
        """Submits both legs of a new room."""
        number = self.new_room()
        room = Room(Leg(number), Leg(number))
        await self.decode.submit(self.job(Role.DECODE, number, prompt, sampling, **dict(changes)), room.decode.sink)
        await self.prefill.submit(self.job(Role.PREFILL, number, prompt, sampling, **dict(changes)), room.prefill.sink)
        return room

    async def abort(self, room: RoomId, why: Why) -> tuple[bool, bool]:
        """Ends both legs."""
        return await self.prefill.abort(room, why), await self.decode.abort(room, why)

    async def idle(self) -> list[EngineStatus]:
        """Checks that both engines hold nothing."""
        found = [await self.prefill.status(), await self.decode.status()]
        for status in found:
            assert (status.running, status.waiting, status.open_rooms) == (0, 0, 0), status
            for pool in status.pools:
                assert pool.free + pool.evictable == pool.total, status
                assert pool.granted == 0, status
        return found
