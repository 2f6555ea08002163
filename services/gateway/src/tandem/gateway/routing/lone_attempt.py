"""One attempt on a unified worker: one room with one leg, which does all of it; see attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem.core.blame import blamed
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.gateway.routing.attempt import RoomPhase, Worker
from tandem.gateway.routing.first_token import FirstToken
from tandem.gateway.routing.sessions import Leg
from tandem.rpc import convert
from tandem.v1 import session_pb2


class LoneAttempt:
    """Runs once. Whatever happens, its leg ends with it."""

    def __init__(
        self,
        submit: session_pb2.Submit,
        worker: Worker,
        deliver: Callable[[session_pb2.Delta], bool],
        first_token: FirstToken,
    ) -> None:
        """deliver: takes news for the client; False if it is too far behind. first_token: of the sequence, whose first
        token a prefill worker may have said in an earlier attempt."""
        self._submit = submit
        self._room = RoomId(submit.room)
        self._worker = worker
        self._deliver = deliver
        self._first_token = first_token
        first_token.new_attempt()
        self._done: asyncio.Future[TandemError | None] = asyncio.get_running_loop().create_future()
        self.delivered = False
        """Whether the client may have seen something of it, so that it cannot be repeated."""
        self.final = False
        """Whether no further attempt can be better."""
        self.blamed: Role | None = None
        """Set if the worker failed of itself."""
        self._when_kv_arrived: list[Callable[[], None]] = []

    @property
    def phase(self) -> RoomPhase:
        """How far it is."""
        return RoomPhase.DECODING if self.delivered else RoomPhase.SUBMITTED

    @property
    def complete(self) -> bool:
        """Whether the whole answer was delivered."""
        return self._ended and self._done.result() is None

    @property
    def failure(self) -> TandemError | None:
        """Why it failed; None if it did not, or was cancelled."""
        return self._done.result() if self._ended else None

    @property
    def suspects(self) -> tuple[WorkerLife, ...]:
        """Workers that another attempt should do without."""
        return (self._worker.life,)

    @property
    def teller(self) -> Role:
        """Whose token came last."""
        return Role.UNIFIED

    @property
    def _ended(self) -> bool:
        return self._done.done() and not self._done.cancelled()

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """Adds what is called once, when the prompt is computed."""
        self._when_kv_arrived.append(hook)

    def give_up(self, error: TandemError) -> bool:
        """Ends its leg, from outside. False if it had ended."""
        if self._done.done():
            return False
        self._fail(error)
        return True

    async def run(self) -> TandemError | None:
        """Returns None when the answer is complete, else why it failed. Cancelling it ends its leg."""
        try:
            self._worker.submit(self._submit, Leg(self._on_delta, self._on_lost))
            del self._submit  # a prompt may be long, and an answer takes long: nobody needs it any more
            return await self._done
        except TandemError as error:
            self._fail(error, Role.UNIFIED)
            return error
        except asyncio.CancelledError:
            self._fail(TandemError(ErrorReason.CANCELLED, "The client has gone, or its time is over."))
            raise

    def _on_delta(self, delta: session_pb2.Delta) -> None:
        if self._done.done():
            return
        if delta.finish.kind == session_pb2.FINISH_KIND_FAILED:
            error = TandemError(*convert.failure_from_proto(delta.finish.failure))
            self._fail(error, blamed(Role.UNIFIED, error.reason, by_peer=False))
            return
        if not self.delivered:
            for hook in self._when_kv_arrived:
                hook()
        try:
            news = self._first_token.from_decode(delta)
        except TandemError as error:
            self.final = True
            self._fail(error)
            return
        if not news.ListFields()[1:]:  # nothing but the room: all of it was said before
            return
        self.delivered = True
        if not self._deliver(news):
            self.final = True
            self._fail(TandemError(ErrorReason.OVERLOADED, "The client reads too slowly; the answer was given up."))
        elif news.HasField("finish"):
            self._done.set_result(None)

    def _on_lost(self, error: TandemError) -> None:
        self._fail(error, Role.UNIFIED)

    def _fail(self, error: TandemError, blamed: Role | None = None) -> None:
        if not self._done.done():
            self.blamed = blamed
            self._done.set_result(error)
        self._worker.cancel(self._room, error)
