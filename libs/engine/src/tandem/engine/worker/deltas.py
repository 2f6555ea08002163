"""What goes back to a gateway: deltas of all rooms of a Session, merged while they wait, sent as step batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tandem.core.ids import RoomId
from tandem.engine.port import Delta, Finish, FinishKind, TokenLogprob
from tandem.engine.rank import wire
from tandem.v1 import session_pb2

MAX_DELTAS = 1_024
"""Most deltas in one message: keeps it well below 1 MiB."""
MAX_BYTES = 512 << 10
"""Most bytes of deltas in one message, but for a single larger one."""

_KINDS = {
    FinishKind.STOP: session_pb2.FINISH_KIND_STOP,
    FinishKind.LENGTH: session_pb2.FINISH_KIND_LENGTH,
    FinishKind.FAILED: session_pb2.FINISH_KIND_FAILED,
    FinishKind.HANDED_OVER: session_pb2.FINISH_KIND_HANDED_OVER,
}


class DeltaBuffer:
    """Takes deltas without ever blocking the engine. At most one pending delta per room: what comes meanwhile is
    merged into it, so it holds no more than the rooms' own answers."""

    def __init__(self) -> None:
        self._pending: dict[RoomId, session_pb2.Delta] = {}
        self._others: Callable[[], session_pb2.OtherRooms] | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def tell_others(self, others: Callable[[], session_pb2.OtherRooms]) -> None:
        """Other Sessions have more or less than was last said. others: what they have when it is sent."""
        self._others = others
        self._wake.set()

    def put(self, delta: Delta) -> None:
        """Takes news of a room."""
        pending = self._pending.get(delta.room)
        if pending is None:
            pending = self._pending[delta.room] = session_pb2.Delta(room=delta.room)
        pending.token_ids.extend(delta.token_ids)
        if delta.text:
            pending.text += delta.text
        if delta.logprobs:
            pending.logprobs.extend(_logprobs(delta.logprobs))
        if delta.prompt_logprobs:
            pending.prompt_logprobs.extend(_logprobs(delta.prompt_logprobs))
        if delta.finish is not None:
            pending.finish.CopyFrom(_finish(delta.finish))
        self._wake.set()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._wake.set()

    async def take(self) -> session_pb2.StepBatch | None:
        """Waits for news; returns what there is of all rooms, bounded; None once it is closed and all was taken."""
        while not self._pending and self._others is None:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        batch = session_pb2.StepBatch()
        if self._others is not None:
            batch.others.CopyFrom(self._others())
            self._others = None
        size = 0
        for room in list(self._pending)[:MAX_DELTAS]:
            delta = self._pending[room]
            size += delta.ByteSize()
            if batch.deltas and size > MAX_BYTES:
                break
            batch.deltas.append(self._pending.pop(room))
        return batch


def _logprobs(logprobs: Iterable[TokenLogprob]) -> list[session_pb2.TokenLogprob]:
    return [
        session_pb2.TokenLogprob(
            token_id=item.token_id,
            logprob=item.logprob,
            top=[session_pb2.TopLogprob(token_id=token, logprob=logprob) for token, logprob in item.top],
        )
        for item in logprobs
    ]


def _finish(finish: Finish) -> session_pb2.Finish:
    return session_pb2.Finish(
        kind=_KINDS[finish.kind],
        matched_text=finish.matched_text,
        matched_token_id=finish.matched_token_id,
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        cached_tokens=finish.cached_tokens,
        failure=wire.failure(finish.why) if finish.why is not None else None,
    )
