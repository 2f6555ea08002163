"""Lines of logs that belong to a request say so, in every service; and no text of a user's gets into logs or spans."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tandem.core.errors import ErrorReason
from tandem.rpc import logs
from tests.support.tracing.system import CALLER, PROMPT, SLOW, TRACE_ID, Here, give_up_one, services_here

MARK = "Xylophonquartz"
"""No word of the tokenizer's, the model's or ours."""


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, as JSON."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    logs.setup("all", level="DEBUG", log_format=logs.LogFormat.JSON, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def ask_and_retry(here: Here, **body: Any) -> str:
    """One request whose first attempt fails; returns its answer."""
    headers = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
    asking = asyncio.create_task(here.ask(f"{MARK} {PROMPT}", new_tokens=10, headers=headers, **body))
    await give_up_one(here, ErrorReason.ENGINE_FAILED)
    response = await asking
    assert response.status_code == 200
    await here.settled_trace("mine")
    return str(response.json()["choices"][0]["text"])


async def test_lines_of_a_request_carry_its_ids_in_every_service(lines: io.StringIO) -> None:
    async with services_here(prefills=2, decodes=2, mock=SLOW) as here:
        await ask_and_retry(here)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    ours = [record for record in records if record["request_id"] == "mine"]
    assert {record["trace_id"] for record in ours} == {TRACE_ID}
    by_logger = {record["logger"]: record["message"] for record in ours}
    assert "attempt 1 on" in by_logger["tandem.gateway.routing.room_runs"]
    failed = [record for record in records if record["message"].startswith("room ") and "failed" in record["message"]]
    assert len(failed) == 2, "one on each side"
    assert {record["request_id"] for record in failed} == {"mine"}
    before = [record for record in records if "attached" in record["message"] or "listening" in record["message"]]
    assert not [record for record in before if record["request_id"]]


async def test_no_text_of_a_user_is_logged_or_recorded(lines: io.StringIO) -> None:
    async with services_here(prefills=2, decodes=2, mock=SLOW) as here:
        answer = await ask_and_retry(here)
        shown = json.dumps((await here.trace("mine")).document())
        refused = await here.ask(MARK, temperature=MARK)
        unknown = await here.http.post("/v1/completions", content=f'{{"prompt": "{MARK}", '.encode())
    assert (refused.status_code, unknown.status_code) == (400, 400)
    assert len(lines.getvalue().splitlines()) > 10
    for text in (lines.getvalue(), shown):
        assert MARK not in text
        assert answer not in text


async def test_a_setting_puts_prompt_and_answer_into_the_span(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_TRACE_CONTENT", "true")
    async with services_here() as here:
        response = await here.ask(MARK, headers={"X-Request-Id": "mine"})
        trace = await here.settled_trace("mine")
    root = trace.spans[0].attributes
    asked = json.loads(str(root["gen_ai.input.messages"]))
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": MARK}]}]
    (told,) = json.loads(str(root["gen_ai.output.messages"]))
    assert told["parts"][0]["content"] == response.json()["choices"][0]["text"]
    assert MARK not in lines.getvalue()
