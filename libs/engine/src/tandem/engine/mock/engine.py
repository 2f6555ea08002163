"""The engine port over the mock's parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, RankId, Role, RoomId, WorkerLife
from tandem.core.kv_log import KvLog
from tandem.core.room.events import Why
from tandem.engine.measures import traffic_of
from tandem.engine.mock import vocabulary as vocabularies
from tandem.engine.mock.decode import DecodeScheduler
from tandem.engine.mock.leases import Leases
from tandem.engine.mock.legs import Leg, LegBook, RoomGroup
from tandem.engine.mock.memory import RankMemory, layout_of
from tandem.engine.mock.prefill import PrefillScheduler
from tandem.engine.mock.rank_port import MakeRank, RankPort, RoomPort, agents
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.unified import UnifiedScheduler
from tandem.engine.port import (
    EngineFacts,
    EngineStatus,
    Job,
    Measured,
    OpenRooms,
    PoolStatus,
    RankInfo,
    RoomTraceSink,
    Sink,
    Ticket,
)
from tandem.engine.rank import open_rooms
from tandem.engine.rank.agent import RoomReport
from tandem.engine.rank.settings import RankSettings
from tandem.rpc.tasks import TaskSupervisor

_NOT_FOLLOWED: Final[dict[str, tuple[object, ...]]] = {
    "json_schema": ("",),
    "regex": ("",),
    "ebnf": ("",),
    "structural_tag": ("",),
    "frequency_penalty": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "logit_bias": ((),),
}
"""What the mock cannot do, and the values that ask for nothing. It has but one next token, so temperatures and the like
change nothing."""
_MAX_TOKEN: Final = 2**32 - 1
"""Largest token id on the wire. The mock hashes prompts, so any tokenizer's ids will do."""


Scheduler = PrefillScheduler | DecodeScheduler | UnifiedScheduler
_SCHEDULERS: Final[dict[Role, type[Scheduler]]] = {
    Role.PREFILL: PrefillScheduler,
    Role.DECODE: DecodeScheduler,
    Role.UNIFIED: UnifiedScheduler,
}
HandleOf = Callable[[RankPort, RoomId], RoomPort]
_HANDLES: Final[dict[Role, HandleOf]] = {
    Role.PREFILL: lambda rank, room: rank.sender(room),
    Role.DECODE: lambda rank, room: rank.receiver(room),
}
"""How a room is held on a rank; a unified engine's ranks know no rooms."""


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is once the engine has started."""

    ranks: dict[RankId, RankPort]
    scheduler: Scheduler
    tasks: TaskSupervisor
    memories: tuple[RankMemory, ...]
    """Held for as long as the ranks may touch them."""

    @property
    def book(self) -> LegBook[Any]:
        """Its open rooms; the kind of their handles follows from the role."""
        return self.scheduler.book


class MockEngine:
    """`tandem.engine.port.Engine` without a model. Its ranks run in this process, on the worker's loop."""

    def __init__(self, settings: MockSettings, role: Role, make_rank: MakeRank | None = None) -> None:
        """make_rank: how to make a rank; real ones with their settings from the environment if None."""
        self._settings = settings
        self._role = role
        self._make_rank = make_rank or agents(RankSettings.load(), self._room_ended)
        self._on_room_traced: RoomTraceSink = lambda _: None
        self._started: _Running | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failed: asyncio.Event = asyncio.Event()
        self._error: TandemError | None = None

    async def start(self) -> EngineFacts:
        """Allocates the pools and starts the ranks. Raises TandemError(ENGINE_FAILED)."""
        settings = self._settings
        memories = tuple(RankMemory(settings, tp) for tp in range(settings.tp_size))
        scheduler = self._make_scheduler(memories)
        pools = [memory.pools() if self._role in PAIR else () for memory in memories]
        layout = layout_of(settings, pools[0])
        ranks = {
            RankId(tp=tp): self._make_rank(self._role, RankId(tp=tp), layout, moved) for tp, moved in enumerate(pools)
        }
        infos = await _start_all(ranks)
        tasks = TaskSupervisor(on_crash=self._crashed, max_tasks=1)
        self._started = _Running(ranks, scheduler, tasks, memories)
        tasks.spawn(scheduler.run(), f"mock {self._role.value} scheduler")
        return EngineFacts(
            model=settings.model,
            layout=layout,
            ranks=infos,
            context_tokens=settings.context_tokens,
            max_running=settings.max_running,
            total_pages=settings.pages,
        )

    @property
    def roles(self) -> frozenset[Role]:
        """All of them."""
        return frozenset(Role)

    async def switch(self, role: Role) -> EngineFacts:
        """Frees everything and starts in another role."""
        await self._close(self._running())
        self._role, self._started = role, None
        return await self.start()

    def on_room_traced(self, sink: RoomTraceSink) -> None:
        """Sets who takes the ranks' traces of rooms."""
        self._on_room_traced = sink

    def _room_ended(self, report: RoomReport) -> None:
        if report.trace is not None:
            self._on_room_traced(report.trace)

    def identify(self, life: WorkerLife) -> None:
        """Tells the ranks the worker's name and life."""
        for rank in self._running().ranks.values():
            rank.identify(life)

    async def submit(self, job: Job, sink: Sink) -> None:
        """Opens the room's ticket on its ranks, then queues the prompt.

        Raises TandemError: INVALID_ARGUMENT, CONTEXT_TOO_LONG, NOT_SUPPORTED (grammars), POOL_EXHAUSTED if the pool
        is too small for it even when it is empty, OVERLOADED, ROOM_EXISTS, DRAINING, ENGINE_FAILED.
        """
        running = self._running()
        self._check(job)
        running.scheduler.check(job)
        leg = running.book.add(job, sink)
        if (handle_of := _HANDLES.get(self._role)) is None:
            running.book.opened(leg, RoomGroup(()))
        else:
            await self._open(running, leg, handle_of)

    async def abort(self, room: RoomId, why: Why) -> bool:
        """Ends a room early. False if it is not known or has ended."""
        book = self._running().book
        leg = book.legs.get(room)
        return leg is not None and book.fail(leg, why)

    def peer_joined(self, life: WorkerLife, addresses: dict[RankId, str]) -> None:
        """Lets decode's ranks dial a prefill worker before it is needed."""
        for rank_id, rank in self._running().ranks.items():
            if address := addresses.get(rank_id):
                rank.peer_joined(life, address)

    def peer_gone(self, life: WorkerLife) -> None:
        """Fails the rooms that still need this peer; one that generates already needs it no more."""
        for rank in self._running().ranks.values():
            rank.peer_gone(life)

    async def status(self) -> EngineStatus:
        """The state of this moment."""
        running = self._running()
        book, active = running.book, running.scheduler.running
        counters = [rank.counters for rank in running.ranks.values()]
        pages, rows, kept = book.leases.pages, book.leases.rows, book.leases.prefixes.evictable
        return EngineStatus(
            running=active,
            waiting=len(book) - active,
            open_rooms=sum(each.open_rooms for each in counters) if self._role in PAIR else len(book),
            pools=(
                PoolStatus("kv", pages.total, pages.free, kept, max(each.granted_pages for each in counters)),
                PoolStatus("metadata", rows.total, rows.free, 0, max(each.granted_rows for each in counters)),
            ),
            rooms_succeeded=book.succeeded,
            rooms_failed=book.failed,
            kv_bytes=sum(each.kv_bytes for each in counters),
            metadata_bytes=sum(each.metadata_bytes for each in counters),
            kv_chunks=sum(each.kv_chunks for each in counters),
            stale_messages=sum(each.stale_messages for each in counters),
            checksum_failures=sum(each.checksum_failures for each in counters),
            links={peer: provider for each in counters for peer, provider in each.links.items()},
            traffic=traffic_of(each.traffic for each in counters),
            moving_us=traffic_of(each.moving_us for each in counters),
        )

    @property
    def held_pages(self) -> KvLog:
        """What is kept of prompts, with the setting of its role: `prefix_cache` or `keep_prefixes`."""
        return self._running().book.leases.prefixes.log

    async def measured(self) -> Measured:
        """The same, and what its ranks have measured."""
        reports = tuple(rank.report() for rank in self._running().ranks.values())
        return Measured(await self.status(), reports)

    async def rooms(self, limit: int) -> OpenRooms:
        """The open rooms of every rank."""
        return open_rooms.merge([rank.rooms(limit) for rank in self._running().ranks.values()])

    def rank_pids(self) -> Sequence[int]:
        """None: its ranks are in this process."""
        return ()

    async def wait_failed(self) -> TandemError:
        """Returns when the scheduler has crashed."""
        await self._failed.wait()
        assert self._error is not None
        return self._error

    async def close(self) -> None:
        """Ends every room, stops the ranks and frees everything. Idempotent."""
        if self._started is None:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(self._started), name="mock engine closes")
        await asyncio.shield(self._closing)

    def _running(self) -> _Running:
        if self._started is None:
            raise TandemError(ErrorReason.ENGINE_FAILED, "the engine has not been started")
        return self._started

    def _make_scheduler(self, memories: tuple[RankMemory, ...]) -> Scheduler:
        settings = self._settings
        if settings.tokenizer_path is not None:
            vocabulary = vocabularies.from_tokenizer(settings.tokenizer_path)
        else:
            vocabulary = vocabularies.built_in(settings.vocab)
        if not settings.says_end:
            vocabulary = vocabulary.without_end()
        keep = {Role.PREFILL: settings.prefix_cache, Role.DECODE: settings.keep_prefixes}.get(self._role, False)
        leases = Leases(
            settings.pages, settings.metadata_rows, settings.page_size, settings.max_running, keep_prefixes=keep
        )
        return _SCHEDULERS[self._role](settings, leases, memories, vocabulary)

    def _check(self, job: Job) -> None:
        if self._closing is not None:
            raise TandemError(ErrorReason.DRAINING, "the engine is closing")
        if self._error is not None:
            raise self._error
        if not job.input_ids:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "the prompt has no tokens", field="input_ids")
        if not 0 <= min(job.input_ids) <= max(job.input_ids) <= _MAX_TOKEN:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"token ids must be in 0..{_MAX_TOKEN}", field="input_ids")
        if len(job.input_ids) >= self._settings.context_tokens:
            raise TandemError(
                ErrorReason.CONTEXT_TOO_LONG,
                f"the prompt has {len(job.input_ids)} tokens, which leaves no room for an answer in a context of "
                f"{self._settings.context_tokens}",
                field="input_ids",
            )
        if job.sampling.max_new_tokens < 1:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "it must be at least 1", field="max_new_tokens")
        if job.dp_rank != 0:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "the mock has dp rank 0 only", field="dp_rank")
        for name, neutral in _NOT_FOLLOWED.items():
            if getattr(job.sampling, name) not in neutral:
                raise TandemError(ErrorReason.NOT_SUPPORTED, f"the mock engine does not follow '{name}'", field=name)

    async def _open(self, running: _Running, leg: Leg[Any], handle_of: HandleOf) -> None:
        job, opened = leg.job, list[RoomPort]()
        try:
            for rank_id, rank in running.ranks.items():
                address = job.peer_addresses.get(rank_id, "")
                if self._role is Role.DECODE and not address:
                    raise TandemError(ErrorReason.INVALID_ARGUMENT, f"no KvLink address of the peer's rank {rank_id}")
                await rank.open_ticket(
                    Ticket(
                        job.room,
                        job.nonce,
                        job.peer,
                        address,
                        job.deadline,
                        len(job.input_ids),
                        job.traceparent,
                        job.request_id,
                    )
                )
                opened.append(handle_of(rank, job.room))
        except TandemError as error:
            running.book.refused(leg, RoomGroup(opened), Why(error.reason, error.message))
            raise
        except asyncio.CancelledError:
            why = Why(ErrorReason.CANCELLED, "the submit was cancelled")
            for rank in running.ranks.values():
                rank.abort_room(job.room, why)
            running.book.refused(leg, RoomGroup(opened), why)
            raise
        running.book.opened(leg, RoomGroup(opened))

    def _crashed(self, name: str, error: Exception) -> None:
        self._error = TandemError(ErrorReason.ENGINE_FAILED, f"{name} crashed: {error!r}")
        self._failed.set()
        self._fail_all(self._running().book, Why(self._error.reason, self._error.message))

    @staticmethod
    def _fail_all(book: LegBook[Any], why: Why) -> None:
        for leg in tuple(book.legs.values()):
            book.fail(leg, why)

    async def _close(self, running: _Running) -> None:
        self._fail_all(running.book, Why(ErrorReason.DRAINING, "the engine closed"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.close_timeout_ms / 1000):
                await running.book.empty.wait()
        await running.tasks.close()
        for rank in running.ranks.values():
            await rank.close()
        # What did not get quiet in time is quiet now: the ranks are gone.
        for leg in tuple(running.book.legs.values()):
            running.book.end_badly(leg)


async def _start_all(ranks: dict[RankId, RankPort]) -> tuple[RankInfo, ...]:
    infos = []
    try:
        for rank in ranks.values():
            infos.append(await rank.start())
    except (TandemError, OSError) as error:
        for rank in ranks.values():
            await rank.close()
        raise TandemError(ErrorReason.ENGINE_FAILED, f"a rank did not start: {error}") from error
    return tuple(infos)
