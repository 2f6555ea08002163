"""/v1/responses with the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tandem.core.errors import ErrorReason
from tandem.v1 import session_pb2
from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import MODEL, fail_with, tokens_of


async def test_create_read_go_on_and_delete() -> None:
    async with cluster() as now:
        first = await now.client.responses.create(model=MODEL, input="hello", max_output_tokens=3, metadata={"a": "b"})
        again = await now.client.responses.retrieve(first.id)
        second = await now.client.responses.create(
            model=MODEL, input="more", previous_response_id=first.id, max_output_tokens=2
        )
        with pytest.raises(openai.BadRequestError):
            await now.client.responses.cancel(first.id)
        await now.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await now.client.responses.retrieve(first.id)
        lengths = [len(submit.input_ids) for submit in now.decodes[0].submits]
    assert first.output_text == again.output_text == "t0 t1 t2 "
    assert (first.status, first.metadata) == ("incomplete", {"a": "b"})
    assert first.usage is not None
    assert first.usage.output_tokens == 3
    assert first.usage.input_tokens == lengths[0] < lengths[1]
    assert second.previous_response_id == first.id
    assert second.output_text == "t0 t1 "


async def test_a_stream_has_the_events_that_the_client_knows() -> None:
    async def stop(submit: session_pb2.Submit, send: Any) -> None:
        for place in range(2):
            send(tokens_of(submit, place))
        send(session_pb2.Delta(room=submit.room, finish=session_pb2.Finish(kind=session_pb2.FINISH_KIND_STOP)))

    async with cluster(decode=[stop]) as now, now.client.responses.stream(model=MODEL, input="hello") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    names = [event.type for event in events]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert final.output_text == "t0 t1 "
    assert final.status == "completed"


async def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    async def break_off(submit: session_pb2.Submit, send: Any) -> None:
        send(tokens_of(submit, 0))
        await fail_with(ErrorReason.CHECKSUM_MISMATCH)(submit, send)

    async with cluster(decode=[break_off], max_attempts=1) as now:
        stream = await now.client.responses.create(model=MODEL, input="hello", stream=True)
        events = [event async for event in stream]
    last = events[-1]
    assert last.type == "error"
    assert last.code == "checksum_mismatch"
