"""Answers of /v1/responses: items of output, as one document or as events that each have a name and a number."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import orjson

from tandem.gateway.api.messages_answers import named_event
from tandem.gateway.api.openai_answers import usage
from tandem.gateway.api.problems import Problem
from tandem.gateway.api.responses_store import Kept
from tandem.gateway.calls import Message, ResponsePlan
from tandem.gateway.mailbox import News
from tandem.gateway.text.speech import CallPart, Listener, Said
from tandem.gateway.text.tools import ToolCall
from tandem.gateway.transcript import Transcript

_PARTS: Final = {"message": "output_text", "reasoning": "reasoning_text"}
"""The type of the one part of content that an item of each type has."""
_OF_KIND: Final[dict[str, dict[str, Any]]] = {"message": {"role": "assistant"}, "reasoning": {"summary": []}}
"""What items of one type have, and others have not."""


def broken_off(problem: Problem) -> bytes:
    """The last event of a stream that went wrong."""
    error = problem.body["error"]
    about = {"code": error["code"], "message": error["message"], "param": error["param"], "sequence_number": 0}
    return named_event({"type": "error", **about})


class ResponsesAnswer:
    """The answer of one call, which has one sequence."""

    def __init__(
        self,
        plan: ResponsePlan,
        head: dict[str, Any],
        transcript: Transcript,
        listener: Listener | None,
        keep: Callable[[Kept], None],
    ) -> None:
        """head: `model` and `created_at`. listener: takes the answer apart; None: it is text. keep: gets the answer
        where the client wants it kept. transcript: filled by `events`."""
        self._plan = plan
        self._head = {"id": plan.id, "object": "response", **head}
        self._transcript = transcript
        self._listener = listener
        self._keep = keep
        self._items: list[dict[str, Any]] = []
        self._open = ""
        """What the last item is, while it goes on: its type, of a call with its index."""
        self._number = 0

    def document(self) -> dict[str, Any]:
        """The whole answer, once the transcript is complete."""
        text = self._transcript.text
        self._say(Said("", text) if self._listener is None else self._listener.whole(text))
        self._close()
        return self._end()

    def events(self, news: list[News]) -> bytes:
        """The events that news bring, to be written in one piece."""
        found: list[dict[str, Any]] = []
        if not self._number:
            found += [self._lifecycle("created", "in_progress"), self._lifecycle("in_progress", "in_progress")]
        for one in news:
            self._transcript.add(one.delta)
            text, last = one.delta.text, one.delta.HasField("finish")
            found += self._say(Said("", text) if self._listener is None else self._listener.hear(text, last=last))
        return self._written(found)

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        closing = self._close()
        document = self._end()
        return self._written([*closing, {"type": f"response.{document['status']}", "response": document}])

    def _written(self, found: list[dict[str, Any]]) -> bytes:
        written = []
        for one in found:
            written.append(named_event({**one, "sequence_number": self._number}))
            self._number += 1
        return b"".join(written)

    def _lifecycle(self, name: str, status: str) -> dict[str, Any]:
        return {"type": f"response.{name}", "response": self._state(status)}

    def _state(self, status: str) -> dict[str, Any]:
        document = {**self._head, "status": status, "background": False, "error": None, "incomplete_details": None}
        return {**document, **self._plan.echo, "output": [], "usage": None}

    def _end(self) -> dict[str, Any]:
        """The document of the answer, which is kept if it is to be."""
        cut = self._transcript.finish_reason == "length"
        document = self._state("incomplete" if cut else "completed")
        if cut:
            document["incomplete_details"] = {"reason": "max_output_tokens"}
            for item in self._items[-1:]:
                item["status"] = "incomplete"
        document |= {"output": self._items, "usage": self._usage()}
        if self._plan.keep:
            chat = (*self._plan.messages, said_by(self._items))
            self._keep(Kept(self._plan.id, orjson.dumps(document), chat, self._plan.owner))
        return document

    def _usage(self) -> dict[str, Any]:
        counts = usage([self._transcript])
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"],
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }

    def _say(self, said: Said) -> list[dict[str, Any]]:
        found = self._text("reasoning", said.reasoning) + self._text("message", said.content)
        for call in said.calls:
            found += self._call(call)
        return found

    def _text(self, kind: str, text: str) -> list[dict[str, Any]]:
        """Text or reasoning; what is but space beside calls and reasoning opens no item."""
        found: list[dict[str, Any]] = []
        if not text or (self._open != kind and self._items and not text.strip()):
            return found
        if self._open != kind:
            found += self._close()
            item: dict[str, Any] = {"id": f"{kind[:2]}_{secrets.token_hex(12)}", "type": kind}
            item |= _OF_KIND[kind]
            item |= {"status": "in_progress", "content": []}
            found += self._opened(kind, item)
            item["content"] = [_part(kind, "")]
            found.append({"type": "response.content_part.added", **self._place(), "part": _part(kind, "")})
        self._items[-1]["content"][0]["text"] += text
        delta = {"type": f"response.{_PARTS[kind]}.delta", **self._place(), "delta": text}
        return [*found, delta | ({"logprobs": []} if kind == "message" else {})]

    def _call(self, call: CallPart) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        kind = f"function_call {call.index}"
        if call.id:
            found += self._close()
            item = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "status": "in_progress"}
            found += self._opened(kind, {**item, "call_id": call.id, "name": call.name, "arguments": ""})
        if self._open == kind and call.arguments:
            self._items[-1]["arguments"] += call.arguments
            place = self._place(content=False)
            found.append({"type": "response.function_call_arguments.delta", **place, "delta": call.arguments})
        return found

    def _opened(self, kind: str, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._open = kind
        self._items.append(item)
        return [{"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": dict(item)}]

    def _close(self) -> list[dict[str, Any]]:
        """The events that end the item that is open."""
        if not self._open:
            return []
        item = self._items[-1]
        item["status"] = "completed"
        if self._open in _PARTS:
            [part] = item["content"]
            text = {"type": f"response.{_PARTS[self._open]}.done", **self._place(), "text": part["text"]}
            found = [text | ({"logprobs": []} if self._open == "message" else {})]
            found.append({"type": "response.content_part.done", **self._place(), "part": part})
        else:
            arguments = {"arguments": item["arguments"], "name": item["name"]}
            place = self._place(content=False)
            found = [{"type": "response.function_call_arguments.done", **place, **arguments}]
        self._open = ""
        done = {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item}
        return [*found, done]

    def _place(self, *, content: bool = True) -> dict[str, Any]:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return place | ({"content_index": 0} if content else {})


def _part(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _PARTS[kind], "text": text}
    return part | ({"annotations": [], "logprobs": []} if kind == "message" else {})


def _whole(arguments: str) -> bool:
    """Whether a call was not cut off."""
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


def said_by(items: list[dict[str, Any]]) -> Message:
    """An answer as a message of the chat that goes on from it."""

    def texts(kind: str) -> str:
        return "".join(item["content"][0]["text"] for item in items if item["type"] == kind)

    calls = tuple(
        ToolCall(item["call_id"], item["name"], item["arguments"])
        for item in items
        if item["type"] == "function_call" and _whole(item["arguments"])
    )
    return Message("assistant", texts("message"), calls, reasoning=texts("reasoning"))
