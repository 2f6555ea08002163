"""One attempt: one room on a prefill and a decode worker at the same time.

Decode brings the tokens. Prefill brings log probabilities of the prompt, word of its failure and, where that is wanted,
the first token ahead of decode. Once a token of decode is there, or prefill has handed over, the KV has arrived: from
then on prefill cannot fail the room any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Protocol

from tandem.core.blame import blamed
from tandem.core.errors import TandemError
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.gateway.routing.first_token import FirstToken
from tandem.gateway.routing.room_end import RoomEnd
from tandem.gateway.routing.sessions import Leg
from tandem.rpc import convert
from tandem.v1 import session_pb2


class RoomPhase(Enum):
    """How far a room is, as its gateway knows from what the legs said."""

    SUBMITTED = "submitted"
    """Neither leg has brought anything."""
    FIRST_TOKEN = "first_token"
    """Prefill has said the first token."""
    DECODING = "decoding"
    """The KV has arrived."""


Legs = Mapping[Role, WorkerLife]
"""Who has which part of a room."""


class Worker(Protocol):
    """The part of a Session that an attempt uses; see tandem.gateway.routing.sessions.Session."""

    @property
    def life(self) -> WorkerLife:
        """Whose Session it is."""

    def submit(self, submit: session_pb2.Submit, leg: Leg) -> None:
        """Sends a room."""

    def cancel(self, room: RoomId, why: TandemError) -> None:
        """Ends a room early."""

    def forget(self, room: RoomId) -> None:
        """Lets a room end by itself, unheard."""


class Attempt:
    """Runs once. Whatever happens, both legs end with it."""

    def __init__(
        self,
        submit: session_pb2.Submit,
        prefill: Worker,
        decode: Worker,
        deliver: Callable[[session_pb2.Delta], bool],
        first_token: FirstToken,
    ) -> None:
        """submit: everything but `peer`. deliver: takes news for the client; False if it is too far behind.
        first_token: of the sequence, whose attempts share it."""
        self._submit = submit
        self._room = RoomId(submit.room)
        self._prefill = prefill
        self._decode = decode
        self._deliver = deliver
        self._first_token = first_token
        first_token.new_attempt()
        self.end = RoomEnd(self._cancel_legs)
        self._awaits_prompt = submit.HasField("logprobs") and submit.logprobs.prompt
        self._last: session_pb2.Delta | None = None
        self.delivered = False
        """Whether the client may have seen more of it than a first token, so that it cannot be repeated."""
        self._began_early = False
        self._flows = False
        """Whether news of decode that are not the last need nothing but to be passed on."""

    @property
    def phase(self) -> RoomPhase:
        """How far it is."""
        if self.end.kv_arrived:
            return RoomPhase.DECODING
        return RoomPhase.FIRST_TOKEN if self._began_early else RoomPhase.SUBMITTED

    @property
    def suspects(self) -> tuple[WorkerLife, ...]:
        """Workers that another attempt should do without."""
        decode = () if self.end.blamed is Role.PREFILL else (self._decode.life,)
        prefill = () if self.end.blamed is Role.DECODE or self.delivered else (self._prefill.life,)
        return (*decode, *prefill)

    @property
    def teller(self) -> Role:
        """Whose token came last."""
        return Role.DECODE if self.delivered else Role.PREFILL

    async def run(self, sent: Callable[[], None] = lambda: None) -> TandemError | None:
        """Returns None when the answer is complete, else why it failed. Cancelling it ends both legs. sent: called once
        both workers were asked."""
        for role, worker, peer, leg in (
            (Role.DECODE, self._decode, self._prefill, Leg(self._on_decode, self._on_decode_lost)),
            (Role.PREFILL, self._prefill, self._decode, Leg(self._on_prefill, self._on_prefill_lost)),
        ):
            try:
                self._send(worker, peer, leg)
            except TandemError as error:
                self.end.fail(error, role)
                return error
        del self._submit  # a prompt may be long, and an answer takes long: nobody needs it any more
        sent()
        return await self.end.wait()

    def _send(self, worker: Worker, peer: Worker, leg: Leg) -> None:
        message = session_pb2.Submit()
        message.CopyFrom(self._submit)
        message.peer.CopyFrom(convert.life_to_proto(peer.life))
        worker.submit(message, leg)

    def _on_decode(self, delta: session_pb2.Delta) -> None:
        ends = delta.HasField("finish")
        if self._flows and not ends:  # of nearly every token
            if not self._deliver(delta):
                self.end.fail_slow()
            return
        if self.end.over:
            return
        if ends and delta.finish.kind == session_pb2.FINISH_KIND_FAILED:
            self.end.fail(*_failure(Role.DECODE, delta))
            return
        self.end.note_kv()
        try:
            news = self._first_token.from_decode(delta)
        except TandemError as error:
            self.end.fail(error, final=True)
            return
        if ends and self._awaits_prompt:
            self._last = news
        elif news.text or news.ListFields()[1:]:  # more than the room: not all of it was said before
            self._pass_on(news)
            self._flows = not (self._awaits_prompt or self._first_token.owes or self.end.over)

    def _on_prefill(self, delta: session_pb2.Delta) -> None:
        if self.end.over:
            return
        early = self._first_token.from_prefill(delta)
        if early is not None:
            self._began_early = True
            if not self._deliver(early):
                self.end.fail_slow()
        if delta.prompt_logprobs and self._awaits_prompt:
            self._awaits_prompt = False
            self._pass_on(session_pb2.Delta(room=self._room, prompt_logprobs=delta.prompt_logprobs))
        if delta.finish.kind == session_pb2.FINISH_KIND_FAILED:
            self._prefill_failed(*_failure(Role.PREFILL, delta))
        elif delta.HasField("finish"):
            self.end.note_kv()
            self._release_last()

    def _on_decode_lost(self, error: TandemError) -> None:
        self.end.fail(error, Role.DECODE)

    def _on_prefill_lost(self, error: TandemError) -> None:
        self._prefill_failed(error, Role.PREFILL)

    def _prefill_failed(self, error: TandemError, blamed: Role | None) -> None:
        if not self.end.kv_arrived:
            self.end.fail(error, blamed)
        else:
            self._release_last()

    def _release_last(self) -> None:
        """Prefill has no more to say: whatever it did not bring will not come."""
        self._awaits_prompt = False
        if self._last is not None and not self.end.over:
            self._pass_on(self._last)

    def _pass_on(self, delta: session_pb2.Delta) -> None:
        if delta.prompt_logprobs:
            self._awaits_prompt = False
        self.delivered = True
        if not self._deliver(delta):
            self.end.fail_slow()
        elif delta.HasField("finish"):
            self._prefill.forget(self._room)
            self.end.well()
        elif self._last is not None and not self._awaits_prompt:
            last, self._last = self._last, None
            self._pass_on(last)

    def _cancel_legs(self, error: TandemError) -> None:
        self._flows = False
        for worker in (self._decode, self._prefill):
            worker.cancel(self._room, error)


def _failure(reporter: Role, delta: session_pb2.Delta) -> tuple[TandemError, Role | None]:
    """What a leg that failed said, and which of the two it was."""
    said = delta.finish.failure
    error = TandemError(*convert.failure_from_proto(said))
    return error, blamed(reporter, error.reason, by_peer=said.by_peer)
