"""One attempt on a unified worker: one room with one leg, which does all of it; see attempt."""

from __future__ import annotations

from collections.abc import Callable

from tandem.core.blame import blamed
from tandem.core.errors import TandemError
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.gateway.routing.attempt import RoomPhase, Worker
from tandem.gateway.routing.first_token import FirstToken
from tandem.gateway.routing.room_end import RoomEnd
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
        self.end = RoomEnd(lambda error: worker.cancel(self._room, error))
        self.delivered = False
        """Whether the client may have seen something of it, so that it cannot be repeated."""

    @property
    def phase(self) -> RoomPhase:
        """How far it is."""
        return RoomPhase.DECODING if self.delivered else RoomPhase.SUBMITTED

    @property
    def suspects(self) -> tuple[WorkerLife, ...]:
        """Workers that another attempt should do without."""
        return (self._worker.life,)

    @property
    def teller(self) -> Role:
        """Whose token came last."""
        return Role.UNIFIED

    async def run(self, sent: Callable[[], None] = lambda: None) -> TandemError | None:
        """Returns None when the answer is complete, else why it failed. Cancelling it ends its leg. sent: called once
        the worker was asked."""
        try:
            self._worker.submit(self._submit, Leg(self._on_delta, self._on_lost))
        except TandemError as error:
            self.end.fail(error, Role.UNIFIED)
            return error
        del self._submit  # a prompt may be long, and an answer takes long: nobody needs it any more
        sent()
        return await self.end.wait()

    def _on_delta(self, delta: session_pb2.Delta) -> None:
        if self.end.over:
            return
        if delta.finish.kind == session_pb2.FINISH_KIND_FAILED:
            error = TandemError(*convert.failure_from_proto(delta.finish.failure))
            self.end.fail(error, blamed(Role.UNIFIED, error.reason, by_peer=False))
            return
        self.end.note_kv()
        try:
            news = self._first_token.from_decode(delta)
        except TandemError as error:
            self.end.fail(error, final=True)
            return
        if not news.ListFields()[1:]:  # nothing but the room: all of it was said before
            return
        self.delivered = True
        if not self._deliver(news):
            self.end.fail_slow()
        elif news.HasField("finish"):
            self.end.well()

    def _on_lost(self, error: TandemError) -> None:
        self.end.fail(error, Role.UNIFIED)
