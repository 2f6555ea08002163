"""Answers of /v1/chat/completions that are taken apart: tool calls and reasoning beside the text."""

from __future__ import annotations

from typing import Any

from tandem.gateway.api.openai_answers import DONE, TokenText, chat_logprobs, event, usage
from tandem.gateway.calls import GenerateCall
from tandem.gateway.mailbox import News
from tandem.gateway.text.speech import CallPart, Hearing, Listener, Parsers, Said
from tandem.gateway.transcript import Transcript


class HeardChatAnswer:
    """The answer of one call, whose `hearing` says how to take it apart."""

    def __init__(
        self,
        call: GenerateCall,
        head: dict[str, Any],
        transcripts: list[Transcript],
        text_of: TokenText,
        parsers: Parsers,
    ) -> None:
        """head: what every document begins with. transcripts: one per sequence, filled by `events`."""
        self._call = call
        self._head = head
        self._chunk_head = {**head, "object": "chat.completion.chunk"}
        self._transcripts = transcripts
        self._text_of = text_of
        hearing = call.hearing or Hearing()
        self._listeners = [parsers.listener(hearing) for _ in transcripts]
        self._greeted: set[int] = set()
        self._calling: set[int] = set()

    def document(self) -> dict[str, Any]:
        """The whole answer, once every transcript is complete."""
        pairs = zip(self._transcripts, self._listeners, strict=True)
        choices = [self._choice(one, listener) for one, listener in pairs]
        return {**self._head, "choices": choices, "usage": usage(self._transcripts)}

    def events(self, news: list[News]) -> bytes:
        """The events that news bring, to be written in one piece."""
        written: list[bytes] = []
        for one in news:
            written += self._event(one)
        return b"".join(written)

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        if not self._call.include_usage:
            return DONE
        return event({**self._chunk_head, "choices": [], "usage": usage(self._transcripts)}) + DONE

    def _event(self, news: News) -> list[bytes]:
        index, transcript, last = news.index, self._transcripts[news.index], news.delta.HasField("finish")
        transcript.add(news.delta)
        deltas: list[dict[str, Any]] = []
        if index not in self._greeted:
            self._greeted.add(index)
            deltas.append({"role": "assistant", "content": ""})
        said = self._listeners[index].hear(news.delta.text, last=last)
        if said.calls:
            self._calling.add(index)
        said_deltas = deltas_of(said)
        if news.delta.logprobs and not said_deltas:
            # What is held back for now has its log probabilities already.
            said_deltas.append({})
        written = [self._chunk(index, delta, None) for delta in deltas]
        for place, delta in enumerate(said_deltas):
            tokens = news.delta.logprobs if place == 0 else ()
            logprobs = chat_logprobs(tokens, self._text_of) if tokens else None
            written.append(self._chunk(index, delta, None, logprobs))
        if last:
            called = index in self._calling and self._listeners[index].complete()
            written.append(self._chunk(index, {}, finish_reason(transcript, called=called)))
        return written

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        document: dict[str, Any] = {**self._chunk_head, "choices": [choice]}
        if self._call.continuous_usage:
            document["usage"] = usage(self._transcripts)
        elif self._call.include_usage:
            document["usage"] = None
        return event(document)

    def _choice(self, one: Transcript, listener: Listener) -> dict[str, Any]:
        said = listener.whole(one.text)
        message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["content"] = said.content or None
            message["tool_calls"] = [call_document(call) for call in said.calls]
        logprobs = None if one.sequence.item.logprobs is None else chat_logprobs(one.logprobs, self._text_of)
        return {
            "index": one.sequence.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason(one, called=bool(said.calls)),
            "matched_stop": one.matched_stop,
        }


def finish_reason(one: Transcript, *, called: bool) -> str | None:
    """How an answer ended. called: it holds tool calls, all of them complete."""
    return "tool_calls" if called and one.finish_reason == "stop" else one.finish_reason


def call_document(call: CallPart) -> dict[str, Any]:
    """A whole call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def deltas_of(said: Said) -> list[dict[str, Any]]:
    """A chat's deltas for what was said, in the order in which models say it."""
    found: list[dict[str, Any]] = []
    if said.reasoning:
        found.append({"reasoning_content": said.reasoning})
    if said.content:
        found.append({"content": said.content})
    for call in said.calls:
        document = call_document(call) if call.id else {"function": {"arguments": call.arguments}}
        found.append({"tool_calls": [{"index": call.index, **document}]})
    return found
