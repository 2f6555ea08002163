"""Sessions: the one long-lived stream between this gateway process and each worker.

A Session is always drained: every Delta goes straight to the leg that waits for it, which never
blocks. Losing the stream fails its rooms at once; then it is opened again, until the worker is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import grpc

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.core.version import CURRENT, Feature, agree
from tandem.gateway.routing.parts import SubmitParts
from tandem.rpc import convert
from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.continued import PART_BYTES
from tandem.rpc.errors import from_rpc_error
from tandem.v1 import decode_pb2_grpc, prefill_pb2_grpc, session_pb2, unified_pb2_grpc

log = logging.getLogger(__name__)

STUBS: Final[Mapping[Role, Callable[[grpc.aio.Channel], Any]]] = {
    Role.PREFILL: prefill_pb2_grpc.PrefillServiceStub,
    Role.DECODE: decode_pb2_grpc.DecodeServiceStub,
    Role.UNIFIED: unified_pb2_grpc.UnifiedServiceStub,
}
"""What each worker is called by; all of them speak alike."""


@dataclass(frozen=True, slots=True)
class Leg:
    """Who waits for news of a room on one worker. Both are called on the loop and must not block."""

    on_delta: Callable[[session_pb2.Delta], None]
    """The last one has a Finish."""
    on_lost: Callable[[TandemError], None]
    """The Session was lost; no delta follows."""


class _Outbox:
    """Messages of one stream that wait to be sent."""

    def __init__(self, first: session_pb2.SessionRequest) -> None:
        self.waiting: deque[Iterable[session_pb2.SessionRequest]] = deque([(first,)])
        """Messages; those of one entry follow each other."""
        self._ready = asyncio.Event()
        self._ready.set()
        self._closed = False

    def close(self) -> None:
        """Ends `messages`: gRPC goes on waiting for the next one even when its stream is lost."""
        self._closed = True
        self.waiting.clear()
        self._ready.set()

    def put(self, messages: Iterable[session_pb2.SessionRequest]) -> None:
        """messages: taken one by one, as the stream has room for them."""
        self.waiting.append(messages)
        self._ready.set()

    async def messages(self) -> AsyncIterator[session_pb2.SessionRequest]:
        while not self._closed:
            await self._ready.wait()
            while self.waiting:
                for message in self.waiting.popleft():
                    yield message
            self._ready.clear()


class Session:
    """This process's stream with one life of one worker."""

    def __init__(
        self, info: WorkerInfo, channel: grpc.aio.Channel, *, gateway_id: str, max_outbox: int, rng: random.Random
    ) -> None:
        """channel: to the worker; stays the caller's. max_outbox: messages that may wait to be sent."""
        self.info = info
        self._stub: Any = STUBS[info.role](channel)
        self._gateway_id = gateway_id
        self._max_outbox = max_outbox
        self._backoff = Backoff(BackoffPolicy(), rng)
        self._legs: dict[int, Leg] = {}
        self._outbox: _Outbox | None = None
        self._features = Feature.NONE
        self._up_changed: Callable[[], None] = lambda: None
        self._rooms_changed: Callable[[int], None] = lambda _: None
        self._others_changed: Callable[[Sequence[int], bool], None] = lambda *_: None
        self._wants_aside = False
        self._empty = asyncio.Event()

    @property
    def life(self) -> WorkerLife:
        """Whose Session it is."""
        return self.info.life

    @property
    def up(self) -> bool:
        """Whether the worker has welcomed us, so that rooms can be submitted."""
        return self._outbox is not None

    @property
    def in_flight(self) -> int:
        """Rooms of ours that run there."""
        return len(self._legs)

    def on_up_changed(self, hook: Callable[[], None]) -> None:
        """Sets what is called after `up` has changed."""
        self._up_changed = hook

    def on_rooms_changed(self, hook: Callable[[int], None]) -> None:
        """Sets what hears how many rooms of ours run there, whenever that changes."""
        self._rooms_changed = hook

    def on_others_changed(self, hook: Callable[[Sequence[int], bool], None]) -> None:
        """Sets what hears how many pages of each rank other gateways have, none while there is no stream; and whether
        the worker is put aside for one of them."""
        self._others_changed = hook

    def submit(self, submit: session_pb2.Submit, leg: Leg) -> None:
        """Sends a room.

        Raises PEER_LOST if the Session is down, OVERLOADED if too much waits to be sent; for a prompt that does not
        fit one message, NOT_SUPPORTED if the worker takes no more, CONTEXT_TOO_LONG if it needs more than are allowed.
        """
        if self._outbox is None:
            raise TandemError(ErrorReason.PEER_LOST, f"There is no Session with {self.life.worker_id}.")
        if len(self._outbox.waiting) >= self._max_outbox:
            raise TandemError(ErrorReason.OVERLOADED, f"Too many messages wait for {self.life.worker_id}.")
        parts = self._parts(submit)
        self._legs[submit.room] = leg
        self._note_rooms()
        self._outbox.put(session_pb2.SessionRequest(submit=part) for part in parts)

    def _parts(self, submit: session_pb2.Submit) -> Iterable[session_pb2.Submit]:
        """The messages of a Submit; there are no more of them once its room is cancelled."""
        if (size := submit.ByteSize()) <= PART_BYTES:
            return (submit,)
        if Feature.CONTINUED not in self._features:
            raise TandemError(
                ErrorReason.NOT_SUPPORTED,
                f"The prompt takes {size} bytes on its way to {self.life.worker_id}, which takes one message of"
                f" {PART_BYTES} at most.",
            )
        return takewhile(lambda part: part.room in self._legs, SubmitParts(submit))

    def put_aside(self, wanted: bool) -> None:
        """Asks for the worker to be put aside for us, or ends that; where it can't be, nothing happens."""
        if wanted is not self._wants_aside:
            self._wants_aside = wanted
            self._say_aside()

    def _say_aside(self) -> None:
        # Not bounded by max_outbox: each follows a request of ours that waits, or was sent there.
        if self._outbox is not None and Feature.PUT_ASIDE in self._features:
            put_aside = session_pb2.PutAside(wanted=self._wants_aside)
            self._outbox.put((session_pb2.SessionRequest(put_aside=put_aside),))

    def cancel(self, room: RoomId, why: TandemError) -> None:
        """Ends a room early; no news of it follow. Nothing happens if it has ended."""
        # Not bounded by max_outbox: there is at most one Cancel for each Submit.
        if self._forget(room) is not None and self._outbox is not None:
            cancel = session_pb2.Cancel(room=room, failure=convert.failure_to_proto(why.reason, why.message))
            self._outbox.put((session_pb2.SessionRequest(cancel=cancel),))

    def forget(self, room: RoomId) -> None:
        """Lets a room end by itself, unheard."""
        self._forget(room)

    def _forget(self, room: int) -> Leg | None:
        leg = self._legs.pop(room, None)
        if leg is not None:
            self._note_rooms()
        return leg

    def _note_rooms(self) -> None:
        self._rooms_changed(len(self._legs))
        if not self._legs:
            self._empty.set()

    async def emptied(self, timeout_s: float) -> None:
        """Returns when no room of ours runs there any more, as after a loss of the stream; or after a while."""
        self._empty.clear()
        if self._legs:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()

    def leave(self) -> None:
        """The worker is gone: its rooms fail with PEER_LOST. `run` is to be cancelled."""
        self._drop(f"The worker {self.life.worker_id} has left.")

    async def run(self) -> None:
        """Keeps the stream open until cancelled. When it is lost, its rooms fail with PEER_LOST."""
        while True:
            why = await self._once()
            self._drop(f"The Session with {self.life.worker_id} was lost: {why}")
            await asyncio.sleep(self._backoff.next_ms() / 1000)

    async def _once(self) -> str:
        """One stream from Hello to its end; returns why it ended."""
        hello = session_pb2.SessionHello(version=convert.protocol_to_proto(CURRENT), gateway_id=self._gateway_id)
        outbox = _Outbox(session_pb2.SessionRequest(hello=hello))
        call = self._stub.Session(outbox.messages())
        try:
            self._check(await self._first(call))
            self._backoff.reset()
            self._set_outbox(outbox)
            if self._wants_aside:
                self._say_aside()
            log.info("Session with %s is open", self.life)
            async for response in call:
                self._hand_out(response.batch)
        except grpc.aio.AioRpcError as error:
            return str(from_rpc_error(error))
        except TandemError as error:
            log.warning("Session with %s refused: %s", self.life, error)
            return str(error)
        finally:
            outbox.close()
            call.cancel()
        return "the worker ended it"

    async def _first(self, call: Any) -> session_pb2.SessionWelcome:
        async for response in call:
            if response.WhichOneof("message") == "welcome":
                welcome: session_pb2.SessionWelcome = response.welcome
                return welcome
            break
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the first message was no SessionWelcome")

    def _check(self, welcome: session_pb2.SessionWelcome) -> None:
        self._features = agree(CURRENT, convert.protocol_from_proto(welcome.version), str(self.life))
        found = convert.life_from_proto(welcome.worker)
        if found != self.life:
            raise TandemError(ErrorReason.STALE_INCARNATION, f"{found} answers at the address of {self.life}")

    def _hand_out(self, batch: session_pb2.StepBatch) -> None:
        if batch.HasField("others"):
            self._others_changed(batch.others.pages, batch.others.put_aside)
        for delta in batch.deltas:
            ended = delta.HasField("finish")
            leg = self._forget(delta.room) if ended else self._legs.get(delta.room)
            if leg is not None:
                leg.on_delta(delta)

    def _drop(self, message: str) -> None:
        self._set_outbox(None)
        legs, self._legs = self._legs, {}
        self._note_rooms()
        self._others_changed((), False)
        if legs:
            log.warning("%s %d rooms fail", message, len(legs))
        for leg in legs.values():
            leg.on_lost(TandemError(ErrorReason.PEER_LOST, message))

    def _set_outbox(self, outbox: _Outbox | None) -> None:
        changed = (outbox is None) != (self._outbox is None)
        self._outbox = outbox
        if changed:
            self._up_changed()


class StatusFollower:
    """Keeps what one worker last said of itself."""

    def __init__(
        self,
        info: WorkerInfo,
        channel: grpc.aio.Channel,
        *,
        interval_ms: int,
        rng: random.Random,
        on_status: Callable[[WorkerInfo, session_pb2.WorkerStatus], None] = lambda *_: None,
    ) -> None:
        """on_status: hears each time."""
        self._info = info
        self._on_status = on_status
        self._stub: Any = STUBS[info.role](channel)
        self._interval_ms = interval_ms
        self._backoff = Backoff(BackoffPolicy(max_ms=5000), rng)
        self.latest: session_pb2.WorkerStatus | None = None
        """None while there is no stream."""
        self.heard_at: float | None = None
        """Monotonic seconds of its last message, of this or a former stream. A worker whose status does not change is
        silent."""

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            with suppress(grpc.aio.AioRpcError):
                request = session_pb2.WatchStatusRequest(min_interval_ms=self._interval_ms)
                async for response in self._stub.WatchStatus(request):
                    self.latest = response.status
                    self._on_status(self._info, response.status)
                    self.heard_at = asyncio.get_running_loop().time()
                    self._backoff.reset()
            self.latest = None
            await asyncio.sleep(self._backoff.next_ms() / 1000)
