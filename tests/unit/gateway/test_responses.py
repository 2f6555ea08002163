"""/v1/responses: what is read, what comes back, and what is kept of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.responses_schema import read_response
from tandem.gateway.api.responses_store import KeepLimits, Kept, ResponseStore
from tandem.gateway.calls import ChatPrompt, Message
from tandem.gateway.text.tools import ToolCall
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import AppLimits, NotingWorkers, finish, http_client, one_each, tokens
from tests.support.gateway.plain_parsers import PlainParsers

LIMITS = SchemaLimits(max_n=4, max_batch=4)
COOK: Any = {"type": "function", "name": "cook", "parameters": {"type": "object"}, "strict": True}
PATH = "/v1/responses"


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def store(count: int = 4, size: int = 1 << 16, age_s: float = 60, clock: Clock | None = None) -> ResponseStore:
    """A small one."""
    return ResponseStore(KeepLimits(count, size, age_s), clock or Clock())


def kept(name: str, size: int = 10) -> Kept:
    """An answer of this size."""
    return Kept(name, b"x" * size, ())


def read(**body: Any) -> tuple[Message, ...]:
    """The messages of a request."""
    [item] = read_response(body, LIMITS, PlainParsers()).items
    assert isinstance(item.prompt, ChatPrompt)
    return item.prompt.messages


def test_items_become_messages_and_those_of_one_turn_become_one() -> None:
    found = read(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_text", "text": "!"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So", "x": []}]},
            {"type": "function_call", "call_id": "1", "name": "cook", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "eat", "arguments": '{"a":1}'},
            {"type": "function_call_output", "call_id": "1", "output": "done"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "too"}]},
            {"type": "function_call", "call_id": "3", "name": "cook", "arguments": "{}"},
        ],
    )
    assert found == (
        Message("system", "Be brief."),
        Message("user", "hi!"),
        Message("assistant", "So", (ToolCall("1", "cook", "{}"), ToolCall("2", "eat", '{"a":1}')), reasoning="hm"),
        Message("tool", "done", call_id="1"),
        Message("tool", "too", call_id="2"),
        Message("assistant", "", (ToolCall("3", "cook", "{}"),)),
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{"role": "boss", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "temperature": 9}, "temperature"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "a", "tools": [COOK], "tool_choice": {"type": "function", "name": "eat"}}, "tool_choice"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "schema": 1}}}, "text.format.schema"),
        ({"input": "a", "reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"input": "a", "previous_response_id": "bad"}, "previous_response_id"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "no_such": 1}, "no_such"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_this_api(body: dict[str, Any], field: str) -> None:
    with pytest.raises(TandemError) as caught:
        read_response(body, LIMITS, PlainParsers())
    assert caught.value.field == field
    assert f"'{field}'" in caught.value.message


def test_the_oldest_go_where_there_is_no_room_and_all_go_with_time() -> None:
    clock = Clock()
    few = store(count=2, clock=clock)
    for name in ("a", "b", "c"):
        few.put(kept(name))
    with pytest.raises(TandemError) as caught:
        few.get("a", field="previous_response_id")
    assert (caught.value.reason, caught.value.field) == (ErrorReason.UNKNOWN_RESPONSE, "previous_response_id")
    assert few.get("b").id == "b"
    clock.now = 60
    assert len(few) == 2
    clock.now = 60.5
    assert len(few) == 0
    small = store(size=25)
    for name in ("a", "b", "c"):
        small.put(kept(name))
    assert len(small) == 2
    small.put(kept("huge", 26))
    assert len(small) == 2, "what alone is too large drives nothing out"
    small.delete("b")
    small.put(kept("d"))
    assert {small.get(name).id for name in ("c", "d")} == {"c", "d"}, "the room of what was deleted is free"
    off = store(count=0)
    off.put(kept("a"))
    assert len(off) == 0


async def test_a_key_reads_its_own_answers_only() -> None:
    workers, limits = one_each(), AppLimits(keys=KeyRing(["ours", "theirs"]))
    async with http_client(workers, limits) as client:
        client.headers["Authorization"] = "Bearer ours"
        mine = (await answered(workers, client, ["a"], session_pb2.FINISH_KIND_STOP, input="hi")).json()
        client.headers["Authorization"] = "Bearer theirs"
        others = [
            await client.get(f"{PATH}/{mine['id']}"),
            await client.delete(f"{PATH}/{mine['id']}"),
            await client.post(PATH, json={"input": "a", "previous_response_id": mine["id"]}),
        ]
        client.headers["Authorization"] = "Bearer ours"
        assert (await client.get(f"{PATH}/{mine['id']}")).json() == mine
    assert [response.status_code for response in others] == [404] * 3


async def answered(
    workers: NotingWorkers, client: httpx.AsyncClient, pieces: list[str], kind: int, **fields: Any
) -> httpx.Response:
    """Asks, plays a worker that says these pieces."""
    asking = asyncio.create_task(client.post(PATH, json=fields))
    submit = await workers.decodes[0].next_submit()
    workers.prefills[0].bring(finish(submit.room, session_pb2.FINISH_KIND_HANDED_OVER))
    for piece in pieces:
        workers.decodes[0].bring(tokens(submit.room, *map(ord, piece), text=piece))
    workers.decodes[0].bring(finish(submit.room, kind))
    return await asking


def prompt_of(workers: NotingWorkers) -> str:
    """The text of the last prompt."""
    return "".join(map(chr, workers.decodes[0].submits[-1].input_ids))


async def test_an_answer_is_kept_gone_on_from_and_forgotten() -> None:
    workers, stop = one_each(), session_pb2.FINISH_KIND_STOP
    async with http_client(workers) as client:
        first = (await answered(workers, client, ["Hel", "lo"], stop, input="hi", instructions="short")).json()
        again = (await client.get(f"{PATH}/{first['id']}")).json()
        second = (
            await answered(workers, client, ["Yes"], stop, input="and?", previous_response_id=first["id"], store=False)
        ).json()
        prompt = prompt_of(workers)
        cancelled = await client.post(f"{PATH}/{first['id']}/cancel")
        unkept = await client.get(f"{PATH}/{second['id']}")
        deleted = (await client.delete(f"{PATH}/{first['id']}")).json()
        gone = await client.get(f"{PATH}/{first['id']}")
        lost = await client.post(PATH, json={"input": "a", "previous_response_id": first["id"]})
    assert first == again
    assert first["status"] == "completed"
    assert first["output"][0]["content"][0]["text"] == "Hello"
    assert first["usage"]["output_tokens"] == 5
    assert prompt == "user:hi;assistant:Hello;user:and?;", "instructions hold for one answer"
    assert cancelled.status_code == 400
    assert deleted == {"id": first["id"], "object": "response", "deleted": True}
    assert {response.status_code for response in (unkept, gone, lost)} == {404}
    assert lost.json()["error"]["param"] == "previous_response_id"


async def test_an_answer_that_was_cut_off_is_incomplete() -> None:
    workers = one_each()
    async with http_client(workers) as client:
        answer = (
            await answered(workers, client, ["Hel"], session_pb2.FINISH_KIND_LENGTH, input="hi", max_output_tokens=3)
        ).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    assert answer["max_output_tokens"] == 3


async def test_a_stream_has_reasoning_text_and_calls_in_numbered_events_and_goes_on_from_results() -> None:
    workers, limits = one_each(), AppLimits(parsers=PlainParsers(reasoning_parser="plain"))
    pieces = ["<think>so</th", "ink>Well <call cook ", '{"a":1}>', '<call cook {"a":2}>']
    async with http_client(workers, limits) as client:
        text = (
            await answered(workers, client, pieces, session_pb2.FINISH_KIND_STOP, input="hi", tools=[COOK], stream=True)
        ).text
        events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
        names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
        final = events[-1]["response"]
        again = (await client.get(f"{PATH}/{final['id']}")).json()
        outputs = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}
            for item in final["output"]
            if item["type"] == "function_call"
        ]
        await answered(
            workers,
            client,
            ["Done"],
            session_pb2.FINISH_KIND_STOP,
            input=outputs,
            previous_response_id=final["id"],
        )
        prompt = prompt_of(workers)
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"
    assert final == again
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["arguments"] for item in final["output"][2:]] == ['{"a":1}', '{"a":2}']
    assert prompt == "user:hi;assistant:Well ;tool:ok;tool:ok;"
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3]
    for place, kind in ((0, "reasoning_text"), (1, "output_text"), (2, "function_call_arguments")):
        mine = [event for event in events if event.get("output_index") == place]
        pieces_of = [event["delta"] for event in mine if event["type"] == f"response.{kind}.delta"]
        [last] = [event for event in mine if event["type"] == f"response.{kind}.done"]
        assert "".join(pieces_of) == last.get("text", last.get("arguments"))
