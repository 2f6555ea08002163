"""The workers that this gateway can use: a Session and a status stream with each that bootstrap lists."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

import grpc

from tandem.core.cluster import ClusterView, WorkerInfo
from tandem.core.errors import TandemError
from tandem.core.ids import Role, WorkerId, WorkerLife, can_serve
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.held_pages import HeldPages
from tandem.gateway.routing.sessions import Session, StatusFollower
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

MAX_CREWS: Final = 256
"""Pairs of role and model whose crews are kept."""

GONE_LATELY_S: Final = 600.0
"""How long a model whose workers have all gone counts as one that may come back."""
LAST_WORDS_S: Final = 2.0
"""Longest wait for what a worker that has drained said last."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One life of one worker, and what we hold of it."""

    session: Session
    status: StatusFollower
    channel: grpc.aio.Channel
    tasks: tuple[asyncio.Task[None], ...]


class State(Enum):
    """How a worker stands with this gateway."""

    READY = "ready"
    """A Session is open."""
    DRAINING = "draining"
    """It takes no new rooms."""
    LOST = "lost"
    """It is listed and there is no Session with it; for the dashboard also one that left without having drained."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One worker as this gateway sees it."""

    role: Role
    state: State
    rooms: int
    """Rooms of ours that run there."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How Sessions are kept."""

    gateway_id: str
    max_outbox: int
    status_interval_ms: int


class SessionPool:
    """Opens and closes Sessions as workers come and go. Everything runs on one loop."""

    def __init__(
        self,
        settings: PoolSettings,
        open_channel: Callable[[str], grpc.aio.Channel],
        *,
        rng: random.Random,
        held: HeldPages | None = None,
        on_status: Callable[[WorkerInfo, session_pb2.WorkerStatus], None] = lambda *_: None,
        on_others: Callable[[WorkerLife, Sequence[int], bool], None] = lambda *_: None,
    ) -> None:
        """open_channel: gets host:port. held: follows what each worker holds. on_status: hears what each tells.
        on_others: hears how many pages of each rank of a worker other gateways have, none where that is not known, and
        whether it is put aside for one of them."""
        self._settings = settings
        self._open_channel = open_channel
        self._rng = rng
        self._held = held
        self._on_status = on_status
        self._on_others = on_others
        self._members: dict[WorkerLife, _Member] = {}
        self._tasks = TaskSupervisor(max_tasks=10_000)
        self._view: Callable[[], ClusterView] = ClusterView
        self._connected: Callable[[], bool] = lambda: False
        self._changed = asyncio.Event()
        self._crews: dict[tuple[Role, str], Crew[Session]] = {}
        self._crews_of: ClusterView | None = None
        """The view that they were made from."""
        self._served: tuple[str, ...] = ()
        self._gone: dict[str, float] = {}
        """Models that nobody serves any more, and since when."""

    def follow(self, view: Callable[[], ClusterView], connected: Callable[[], bool]) -> None:
        """Sets where the view of the cluster, and whether bootstrap confirms it, can be read."""
        self._view, self._connected = view, connected

    @property
    def view(self) -> ClusterView:
        """The cluster as last heard of."""
        return self._view()

    def joined(self, info: WorkerInfo) -> None:
        """A worker is there. One that we may not dial gets no Session, and so no rooms."""
        for life in [life for life in self._members if life.worker_id == info.worker_id and life != info.life]:
            self._remove(life)
        if info.life not in self._members:
            self._add(info)
        self._note_gone()
        self._note_change()

    def _add(self, info: WorkerInfo) -> None:
        try:
            channel = self._open_channel(info.address)
        except TandemError as error:
            log.error("worker %s can't be used: %s", info.life, error.message)
            return
        session = Session(
            info,
            channel,
            gateway_id=self._settings.gateway_id,
            max_outbox=self._settings.max_outbox,
            rng=self._rng,
        )
        session.on_up_changed(self._note_up)
        session.on_rooms_changed(partial(self._note_rooms, info.life))
        session.on_others_changed(partial(self._on_others, info.life))
        status = StatusFollower(
            info,
            channel,
            interval_ms=self._settings.status_interval_ms,
            rng=self._rng,
            on_status=self._on_status,
        )
        tasks = [
            self._tasks.spawn(session.run(), f"session-{info.life}"),
            self._tasks.spawn(status.run(), f"status-{info.life}"),
        ]
        if self._held is not None:
            tasks.append(self._tasks.spawn(self._held.follow(info, channel), f"held-{info.life}"))
        self._crews.clear()
        self._members[info.life] = _Member(session, status, channel, tuple(tasks))

    def left(self, life: WorkerLife) -> None:
        """A worker is gone: its rooms fail with PEER_LOST at once, or if it has drained when it has said its last word.

        Where only bootstrap is out of reach, a worker that we still talk to keeps its rooms; it gets no new ones.
        """
        if self._connected():
            self._remove(life)
        self._note_gone()
        self._note_change()

    def changed(self, info: WorkerInfo) -> None:
        """A worker has other facts, such as draining."""
        if info.life in self._members:
            self._members[info.life].session.info = info
            self._crews.clear()
        self._note_change()

    def crew(self, role: Role, model: str) -> Crew[Session]:
        """Sessions that can take a room of a model now. The same crew as long as nothing about it changes."""
        if self._crews_of is not self.view:
            self._crews_of = self.view
            self._crews.clear()
        crew = self._crews.get((role, model))
        if crew is None:
            crew = Crew(self.sessions(role, model))
            if len(self._crews) < MAX_CREWS:  # a client may name any model
                self._crews[role, model] = crew
        return crew

    def _note_rooms(self, life: WorkerLife, rooms: int) -> None:
        for crew in self._crews.values():
            crew.note_rooms(life, rooms)

    def _note_up(self) -> None:
        self._crews.clear()
        self._changed.set()

    def sessions(self, role: Role, model: str) -> list[Session]:
        """Sessions that can take a room of a model now, in order of worker id."""
        routable = (self._members.get(info.life) for info in self.view.routable(role, model))
        return [member.session for member in routable if member is not None and member.session.up]

    def known(self, model: str) -> bool:
        """Whether the view has workers that can serve a room of a model, with or without a Session."""
        return self.view.serves(model)

    def models(self) -> tuple[str, ...]:
        """Every model that some worker serves, in order of name."""
        return tuple(sorted({model for info in self.view.workers.values() for model in info.models}))

    def context_tokens(self, model: str) -> int:
        """The smallest context among a model's workers; 0 if it has none."""
        return min((i.context_tokens for i in self.view.workers.values() if model in i.models), default=0)

    def gone_lately(self, model: str) -> bool:
        """Whether the last worker of a model went a short while ago, so that it may come back."""
        gone_at = self._gone.get(model)
        return gone_at is not None and asyncio.get_running_loop().time() - gone_at < GONE_LATELY_S

    def tokenizer_paths(self, model: str) -> tuple[str, ...]:
        """Where a model's workers say that its tokenizer is, each path once, in order of worker id."""
        serving = (info for info in self.view.workers.values() if model in info.models and info.tokenizer_path)
        return tuple(dict.fromkeys(info.tokenizer_path for info in serving))

    def ready(self) -> bool:
        """Whether some model has workers that can serve it, and that we have Sessions with."""
        return any(can_serve(partial(self.sessions, model=model)) for model in self.models())

    def member_of(self, worker_id: WorkerId) -> tuple[Session, StatusFollower] | None:
        """What we hold of a worker."""
        info = self.view.workers.get(worker_id)
        member = None if info is None else self._members.get(info.life)
        return None if member is None else (member.session, member.status)

    def put_aside(self, life: WorkerLife, wanted: bool) -> None:
        """Asks for a worker to be put aside for this gateway, or ends that; nothing happens where it has gone."""
        if (member := self._members.get(life)) is not None:
            member.session.put_aside(wanted)

    def standings(self) -> Iterator[Standing]:
        """Every worker of the view, as we see it now."""
        for info in self.view.workers.values():
            member = self._members.get(info.life)
            up = member is not None and member.session.up
            state = State.LOST if not up else State.DRAINING if info.draining else State.READY
            yield Standing(info.role, state, member.session.in_flight if member is not None else 0)

    async def wait_changed(self) -> None:
        """Returns when anything that `ready` depends on has changed since the last time."""
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Ends every Session; rooms that still run fail."""
        members = list(self._members.values())
        self._members.clear()
        for member in members:
            member.session.leave()
        await self._tasks.close()
        await asyncio.gather(*(member.channel.close() for member in members))

    def _note_gone(self) -> None:
        """Remembers for a while the models that nobody serves any more."""
        now, served = asyncio.get_running_loop().time(), self.models()
        fresh = {model: at for model, at in self._gone.items() if now - at < GONE_LATELY_S}
        fresh |= {model: now for model in self._served if model not in served}
        self._gone = {model: at for model, at in fresh.items() if model not in served}
        self._served = served

    def _note_change(self) -> None:
        """Drops what was kept through a loss of bootstrap and is of no use any more; wakes who waits."""
        if self._connected():
            for life, member in list(self._members.items()):
                useless = not member.session.up or not member.session.in_flight
                if useless and self.view.find(life) is None:
                    self._remove(life)
        self._changed.set()

    def _remove(self, life: WorkerLife) -> None:
        self._crews.clear()
        member = self._members.pop(life, None)
        if member is None:
            return
        log.info("worker %s has left", life)
        session = member.session
        if session.up and session.in_flight and session.info.draining:
            self._tasks.spawn(self._hear_out(member), f"last words of {life}")
            return
        self._cut(member)
        self._tasks.spawn(self._close_channel(member), f"close-{life}")

    async def _hear_out(self, member: _Member) -> None:
        """A worker that has drained says how its rooms ended, and ends the Session by itself: bootstrap's word that it
        has left may overtake that."""
        try:
            await member.session.emptied(LAST_WORDS_S)
        finally:
            self._cut(member)
            await self._close_channel(member)

    @staticmethod
    def _cut(member: _Member) -> None:
        member.session.leave()
        for task in member.tasks:
            task.cancel()

    async def _close_channel(self, member: _Member) -> None:
        await asyncio.wait(member.tasks)
        await member.channel.close()
