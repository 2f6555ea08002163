"""What waits for a slow gateway is merged, never dropped, and sent in bounded messages."""

from __future__ import annotations

import asyncio

from tandem.core.errors import ErrorReason
from tandem.core.ids import RoomId
from tandem.core.room.events import Why
from tandem.engine.port import Delta, Finish, FinishKind, TokenLogprob
from tandem.engine.worker.deltas import MAX_BYTES, MAX_DELTAS, DeltaBuffer
from tandem.v1 import session_pb2

A, B = RoomId(1), RoomId(2)


async def test_one_step_is_one_batch() -> None:
    buffer = DeltaBuffer()
    buffer.put(Delta(A, (1,), "a"))
    buffer.put(Delta(B, (2,), "b"))
    batch = await buffer.take()
    assert [(delta.room, list(delta.token_ids), delta.text) for delta in batch.deltas] == [(1, [1], "a"), (2, [2], "b")]


async def test_what_waits_is_merged_in_order() -> None:
    buffer = DeltaBuffer()
    buffer.put(Delta(A, (1,), "a", logprobs=(TokenLogprob(1, -0.5, ((1, -0.5), (9, -2.0))),)))
    buffer.put(Delta(A, (2, 3), "bc", logprobs=(TokenLogprob(2, -1.0),)))
    why = Why(ErrorReason.CANCELLED, "left")
    buffer.put(Delta(A, finish=Finish(FinishKind.FAILED, prompt_tokens=7, why=why)))
    (delta,) = (await buffer.take()).deltas
    assert (list(delta.token_ids), delta.text) == ([1, 2, 3], "abc")
    assert [item.token_id for item in delta.logprobs] == [1, 2]
    assert [item.token_id for item in delta.logprobs[0].top] == [1, 9]
    assert delta.finish.kind == session_pb2.FINISH_KIND_FAILED
    assert (delta.finish.prompt_tokens, delta.finish.failure.reason) == (7, "CANCELLED")


async def test_taking_waits_for_news() -> None:
    buffer = DeltaBuffer()
    taking = asyncio.ensure_future(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()
    buffer.put(Delta(A, (1,)))
    assert len((await taking).deltas) == 1


async def test_messages_are_bounded_in_rooms_and_bytes() -> None:
    buffer = DeltaBuffer()
    for room in range(1, MAX_DELTAS + 11):
        buffer.put(Delta(RoomId(room), (1,)))
    assert len((await buffer.take()).deltas) == MAX_DELTAS
    assert len((await buffer.take()).deltas) == 10
    for room in (1, 2, 3):
        buffer.put(Delta(RoomId(room), text="x" * (MAX_BYTES // 2)))
    sizes = [(await buffer.take()).ByteSize() for _ in range(3)]
    assert max(sizes) < 1 << 20
    assert sum(sizes) > 3 * (MAX_BYTES // 2), "nothing was lost"
