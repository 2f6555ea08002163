"""Answers of /v1/messages, in Anthropic's shape: one JSON document, or events that each have a name."""

from __future__ import annotations

from typing import Any

from tandem.gateway.api.openai_answers import event
from tandem.gateway.api.problems import Problem
from tandem.gateway.mailbox import News
from tandem.gateway.transcript import Transcript
from tandem.v1 import session_pb2


def named_event(document: dict[str, Any]) -> bytes:
    """One server-sent event whose name is its type."""
    return f"event: {document['type']}\n".encode() + event(document)


def failure_event(problem: Problem) -> bytes:
    """The last event of a stream that broke off."""
    return named_event(problem.body)


class MessagesAnswer:
    """The answer of one call, which has one sequence."""

    def __init__(self, model: str, name: str, transcript: Transcript) -> None:
        """name: the request's id. transcript: filled by `events`."""
        self._head = {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": model}
        self._transcript = transcript
        self._greeted = False

    def document(self) -> dict[str, Any]:
        """The whole answer, once the transcript is complete."""
        content = [{"type": "text", "text": self._transcript.text}]
        return {**self._head, "content": content, **stop_of(self._transcript), "usage": message_usage(self._transcript)}

    def events(self, news: list[News]) -> bytes:
        """The events that news bring, to be written in one piece."""
        written = [] if self._greeted else self._greeting()
        self._greeted = True
        for one in news:
            self._transcript.add(one.delta)
            if one.delta.text:
                delta = {"type": "text_delta", "text": one.delta.text}
                written.append(named_event({"type": "content_block_delta", "index": 0, "delta": delta}))
        return b"".join(written)

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        last: list[dict[str, Any]] = [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop_of(self._transcript), "usage": message_usage(self._transcript)},
            {"type": "message_stop"},
        ]
        return b"".join(map(named_event, last))

    def _greeting(self) -> list[bytes]:
        message = {**self._head, "content": [], **stop_of(self._transcript), "usage": message_usage(self._transcript)}
        block = {"type": "text", "text": ""}
        return [
            named_event({"type": "message_start", "message": message}),
            named_event({"type": "content_block_start", "index": 0, "content_block": block}),
        ]


def stop_of(transcript: Transcript) -> dict[str, Any]:
    """Why an answer ended; nothing while it goes on."""
    finish = transcript.finish
    if finish is None:
        return {"stop_reason": None, "stop_sequence": None}
    if finish.kind == session_pb2.FINISH_KIND_LENGTH:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    matched = finish.matched_text or None
    return {"stop_reason": "stop_sequence" if matched else "end_turn", "stop_sequence": matched}


def message_usage(transcript: Transcript) -> dict[str, int]:
    """Token counts so far. What came out of the cache is not part of `input_tokens`."""
    cached = transcript.cached_tokens
    return {
        "input_tokens": len(transcript.sequence.input_ids) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": transcript.completion_tokens,
    }
