"""SGLang behind the engine port: one leg per room, from its ticket to its Finish."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, RankId, Role, RoomId, WorkerLife
from tandem.core.kv_log import KvLog
from tandem.core.room.events import Why
from tandem.engine.hub import RankHub
from tandem.engine.port import (
    Delta,
    EngineFacts,
    EngineStatus,
    Finish,
    FinishKind,
    Job,
    Measured,
    OpenRooms,
    RoomTraceSink,
    Sink,
)
from tandem.engine.sglang import arguments, environment, translate
from tandem.engine.sglang.architectures import unneeded_modules
from tandem.engine.sglang.arguments import SglangOptions
from tandem.engine.sglang.launch import RunningSglang, kept_logging
from tandem.engine.sglang.tickets import NoTickets, Tickets
from tandem.rpc.tasks import TaskSupervisor

log = logging.getLogger(__name__)

MAX_LEGS = 65_536
"""Most rooms at the same time."""
SWITCH_TIMEOUT_MS: Final = 60_000
"""Longest that SGLang's ranks may take to come back in another role."""
SILENT: Final = Finish(FinishKind.FAILED, why=Why(ErrorReason.ENGINE_FAILED, "SGLang ended the request silently"))


@dataclass(slots=True)
class Leg:
    """One room under way."""

    job: Job
    sink: Sink
    why: Why | None = None
    """Why it was ended from here, if it was."""


class SglangEngine:
    """The engine port over SGLang; see tandem.engine.port.Engine."""

    def __init__(self, role: Role, options: SglangOptions) -> None:
        self._role = role
        self._options = options
        self._legs: dict[RoomId, Leg] = {}
        self._tasks = TaskSupervisor(max_tasks=MAX_LEGS)
        self._hub: RankHub | None = None
        self._sglang: RunningSglang | None = None
        self._tickets: Tickets = NoTickets()
        self._ended: Counter[bool] = Counter()
        """Legs that ended, by whether they did well."""
        self._context_tokens = 0
        self._on_room_traced: RoomTraceSink = lambda _: None

    async def start(self) -> EngineFacts:
        """Starts SGLang and waits for its ranks. Raises TandemError with what went wrong."""
        self._hub = hub = RankHub(
            self._options.tp_size,
            on_room_failed=self._on_room_failed,
            on_room_traced=self._on_room_traced,
        )
        self._tickets = hub if self._role in PAIR else NoTickets()
        address = await hub.start()
        self._sglang = sglang = RunningSglang()
        try:
            async with asyncio.timeout(self._options.start_timeout_ms / 1000):
                with kept_logging(self._options.log_level):
                    await sglang.start(lambda: self._prepare(address))
                return await self._facts(hub, sglang, self._options.start_timeout_ms)
        except TimeoutError as error:
            raise TandemError(
                ErrorReason.ENGINE_FAILED, f"SGLang did not start in {self._options.start_timeout_ms} ms"
            ) from error

    async def _facts(self, hub: RankHub, sglang: RunningSglang, timeout_ms: int) -> EngineFacts:
        """Once its ranks are there."""
        ranks, layout = await hub.wait_ranks(timeout_ms)
        self._context_tokens = sglang.context_tokens
        return EngineFacts(
            model=self._options.name,
            layout=layout,
            ranks=ranks,
            context_tokens=sglang.context_tokens,
            max_running=sglang.max_running,
            total_pages=sglang.pool_tokens // layout.page_size,
        )

    def _prepare(self, hub_address: str) -> dict[str, Any]:
        """The environment, then the arguments: SGLang reads the one when it is imported to check the other."""
        options = self._options
        on_cpu = options.device == "cpu" or (options.device == "auto" and not environment.has_gpu())
        if not on_cpu and environment.installed_for_cpu():
            raise TandemError(
                ErrorReason.NOT_SUPPORTED, "device cuda: SGLang is installed for the CPU here, with stand-ins for CUDA"
            )
        cores = len(environment.available_cores())
        threads = options.threads_per_rank or max(1, cores // (2 * options.tp_size))
        cpu = environment.Cpu(threads, options.tp_size) if on_cpu else None
        # A draft model has an architecture of its own, which the checkpoint does not name.
        speculative = any("speculative" in argument for argument in options.engine_args)
        unneeded = [] if speculative else unneeded_modules(options.model_path)
        environment.prepare(hub_address, options.model_path, cpu, unneeded)
        extra = arguments.parse(options.engine_args)
        memory = environment.available_memory_bytes()
        return arguments.server_args(options, self._role, on_cpu, extra, memory)

    @property
    def roles(self) -> frozenset[Role]:
        """Both of a pair if SGLang was told so when it started."""
        return frozenset(PAIR if self._role in PAIR and self._options.role_switch else (self._role,))

    async def switch(self, role: Role) -> EngineFacts:
        """Lets SGLang rebuild what belongs to the role; weights and KV pools stay. Its ranks attach anew."""
        hub, sglang = self._started_hub(), self._running()
        await sglang.check_switch(role.value)
        hub.release()
        await sglang.switch(role.value)
        self._role = role
        return await self._facts(hub, sglang, SWITCH_TIMEOUT_MS)

    def on_room_traced(self, sink: RoomTraceSink) -> None:
        """Sets who takes the ranks' traces of rooms, before `start`."""
        self._on_room_traced = sink

    @property
    def held_pages(self) -> KvLog:
        """What SGLang's prefix cache holds, as far as it says."""
        return self._started_hub().held_pages

    def identify(self, life: WorkerLife) -> None:
        """Tells the ranks who they are."""
        self._started_hub().identify(life)

    async def submit(self, job: Job, sink: Sink) -> None:
        """Opens the room on every rank, then hands the prompt to SGLang.

        Raises TandemError: ROOM_EXISTS, CONTEXT_TOO_LONG, or as the ranks refused the ticket.
        """
        if job.room in self._legs:
            raise TandemError(ErrorReason.ROOM_EXISTS, f"room {job.room} is open already")
        if len(job.input_ids) >= self._context_tokens:
            raise TandemError(
                ErrorReason.CONTEXT_TOO_LONG,
                f"a prompt of {len(job.input_ids)} tokens leaves no room in a context of {self._context_tokens}",
                field="input_ids",
            )
        self._legs[job.room] = leg = Leg(job, sink)
        try:
            await self._tickets.open_tickets(job)
            self._tasks.spawn(self._serve(leg), f"room {job.room}")
        except (TandemError, asyncio.CancelledError) as error:
            del self._legs[job.room]
            if isinstance(error, asyncio.CancelledError):
                self._tickets.abort(job.room, Why(ErrorReason.CANCELLED, "the submit was given up"))
            raise

    async def _serve(self, leg: Leg) -> None:
        """One leg to its end: exactly one Finish goes to its sink, whatever happens."""
        finish = SILENT
        deadline = asyncio.get_running_loop().call_at(leg.job.deadline, self._expire, leg)
        try:
            finish = await self._relay(leg)
        except ValueError as error:
            finish = Finish(FinishKind.FAILED, why=Why(ErrorReason.INVALID_ARGUMENT, str(error)))
        except asyncio.CancelledError:
            finish = Finish(FinishKind.FAILED, why=Why(ErrorReason.DRAINING, "the engine is closing"))
            raise
        finally:
            deadline.cancel()
            del self._legs[leg.job.room]
            self._ended[finish.why is None] += 1
            if finish.why is not None:
                self._tickets.abort(leg.job.room, finish.why)
            leg.sink(Delta(leg.job.room, finish=finish))

    async def _relay(self, leg: Leg) -> Finish:
        """Passes SGLang's answers on; returns how it ended."""
        running, job = self._running(), leg.job
        async for answer in running.generate(translate.request_of(job, self._role)):
            delta = translate.delta_of(job, self._role, answer)
            finish = delta.finish
            if finish is None:
                leg.sink(delta)
                continue
            if delta.token_ids or delta.text or delta.prompt_logprobs:
                leg.sink(
                    Delta(job.room, delta.token_ids, delta.text, delta.logprobs, delta.prompt_logprobs, finish=None)
                )
            if finish.why is not None:
                return Finish(FinishKind.FAILED, why=self._why(leg, finish.why))
            return finish
        return SILENT

    def _why(self, leg: Leg, seen: Why) -> Why:
        """The first cause: what was asked from here, then what a rank said, then what SGLang said."""
        return leg.why or self._tickets.failure_of(leg.job.room) or seen

    async def abort(self, room: RoomId, why: Why) -> bool:
        """Ends a room early; its Finish comes through its sink."""
        leg = self._legs.get(room)
        if leg is None:
            return False
        self._give_up(leg, why)
        return True

    def _give_up(self, leg: Leg, why: Why) -> None:
        leg.why = leg.why or why
        self._tickets.abort(leg.job.room, why)
        self._running().abort(translate.rid_of(leg.job.room))

    def _expire(self, leg: Leg) -> None:
        self._give_up(leg, Why(ErrorReason.DEADLINE_EXCEEDED, "the request ran out of time"))

    def _on_room_failed(self, room: RoomId, why: Why) -> None:
        """A rank gave a room up: so do its siblings and SGLang."""
        if leg := self._legs.get(room):
            self._give_up(leg, why)

    def peer_joined(self, life: WorkerLife, addresses: dict[RankId, str]) -> None:
        """Decode: a prefill worker is there."""
        self._started_hub().peer_joined(life, addresses)

    def peer_gone(self, life: WorkerLife) -> None:
        """A peer's life is over."""
        self._started_hub().peer_gone(life)

    async def status(self) -> EngineStatus:
        """The state of this moment."""
        return self._counted(await self._started_hub().status())

    async def measured(self) -> Measured:
        """The same, and what its ranks have measured."""
        measured = await self._started_hub().measured()
        return replace(measured, status=self._counted(measured.status))

    def _counted(self, status: EngineStatus) -> EngineStatus:
        """With its rooms, where its ranks know none."""
        if self._role in PAIR:
            return status
        return replace(
            status,
            open_rooms=len(self._legs),
            rooms_succeeded=self._ended[True],
            rooms_failed=self._ended[False],
        )

    async def rooms(self, limit: int) -> OpenRooms:
        """The open rooms of every rank."""
        return await self._started_hub().rooms(limit)

    def rank_pids(self) -> Sequence[int]:
        """Processes of SGLang's schedulers."""
        return self._started_hub().rank_pids()

    async def wait_failed(self) -> TandemError:
        """Returns when a process of SGLang died."""
        lost = asyncio.ensure_future(self._started_hub().wait_failed())
        try:
            await asyncio.wait([lost, self._running().failed], return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else self._running().failed.result()
        finally:
            lost.cancel()

    async def close(self) -> None:
        """Ends every room, then SGLang. Idempotent."""
        if self._hub is not None:
            self._hub.closing()
        await self._tasks.close()
        if self._sglang is not None:
            await self._sglang.close()
            self._sglang = None
        if self._hub is not None:
            await self._hub.close()
            self._hub = None

    def _started_hub(self) -> RankHub:
        if self._hub is None:
            raise TandemError(ErrorReason.DRAINING, "the engine is not running")
        return self._hub

    def _running(self) -> RunningSglang:
        if self._sglang is None:
            raise TandemError(ErrorReason.DRAINING, "the engine is not running")
        return self._sglang
