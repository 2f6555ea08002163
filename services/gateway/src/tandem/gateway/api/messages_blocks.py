"""Answers of /v1/messages that are taken apart: blocks of thinking, text and calls of tools."""

from __future__ import annotations

from typing import Any

import orjson

from tandem.gateway.api.messages_answers import message_usage, named_event, stop_of
from tandem.gateway.mailbox import News
from tandem.gateway.text.speech import CallPart, Listener, Said
from tandem.gateway.transcript import Transcript


class HeardMessagesAnswer:
    """The answer of one call, which has one sequence."""

    def __init__(self, model: str, name: str, transcript: Transcript, listener: Listener) -> None:
        """name: the request's id. transcript: filled by `events`."""
        self._head = {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": model}
        self._transcript = transcript
        self._listener = listener
        self._greeted = False
        self._blocks = 0
        self._open = ""
        """What the last block is, while it goes on: its type, of a call with its index."""
        self._called = False

    def document(self) -> dict[str, Any]:
        """The whole answer, once the transcript is complete."""
        said = self._listener.whole(self._transcript.text)
        content: list[dict[str, Any]] = []
        if said.reasoning:
            content.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
        if said.content.strip() or not said.calls:
            content.append({"type": "text", "text": said.content})
        for call in said.calls:
            given = _input(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        self._called = bool(said.calls)
        return {**self._head, "content": content, **self._stop(), "usage": message_usage(self._transcript)}

    def events(self, news: list[News]) -> bytes:
        """The events that news bring, to be written in one piece."""
        found: list[dict[str, Any]] = []
        if not self._greeted:
            self._greeted = True
            message = {**self._head, "content": [], **self._stop(), "usage": message_usage(self._transcript)}
            found.append({"type": "message_start", "message": message})
        for one in news:
            self._transcript.add(one.delta)
            found += self._say(self._listener.hear(one.delta.text, last=one.delta.HasField("finish")))
        return b"".join(map(named_event, found))

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        found = self._close() if self._blocks else [*self._start("text", {"type": "text", "text": ""}), *self._close()]
        found.append({"type": "message_delta", "delta": self._stop(), "usage": message_usage(self._transcript)})
        found.append({"type": "message_stop"})
        return b"".join(map(named_event, found))

    def _say(self, said: Said) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if said.reasoning:
            if self._open != "thinking":
                found += self._start("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            found.append(self._delta({"type": "thinking_delta", "thinking": said.reasoning}))
        if said.content and (self._open == "text" or not self._blocks or said.content.strip()):
            if self._open != "text":
                found += self._start("text", {"type": "text", "text": ""})
            found.append(self._delta({"type": "text_delta", "text": said.content}))
        for call in said.calls:
            found += self._call(call)
        return found

    def _call(self, call: CallPart) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        kind = f"tool_use {call.index}"
        if call.id:
            self._called = True
            found += self._start(kind, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if self._open == kind and call.arguments:
            found.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        return found

    def _start(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        closing = self._close()
        self._open = kind
        self._blocks += 1
        return [*closing, {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._blocks - 1}]

    def _stop(self) -> dict[str, Any]:
        stop = stop_of(self._transcript)
        ends = stop["stop_reason"] in ("end_turn", "stop_sequence")
        return {"stop_reason": "tool_use", "stop_sequence": None} if self._called and ends else stop


def _input(arguments: str) -> Any:
    """Arguments as an object; those that are none, of a call that was cut off, as an empty one."""
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
