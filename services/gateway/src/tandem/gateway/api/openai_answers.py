"""Answers of /v1/chat/completions and /v1/completions: JSON documents and server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

import orjson

from tandem.gateway.calls import Api, GenerateCall
from tandem.gateway.mailbox import News
from tandem.gateway.transcript import Transcript
from tandem.v1 import session_pb2

DONE: Final = b"data: [DONE]\n\n"

TokenText = Callable[[int], str]
_TEXT: Final = "text"
"""Stands for one where the bytes around it are made."""
_QUOTED_TEXT: Final = orjson.dumps(_TEXT)


def event(document: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def usage(transcripts: SequenceOf[Transcript]) -> dict[str, Any]:
    """Token counts of a request. A prompt counts once, however many answers it gets."""
    prompt = sum(len(one.sequence.input_ids) for one in transcripts if one.sequence.choice == 0)
    completion = sum(one.completion_tokens for one in transcripts)
    cached = sum(one.cached_tokens for one in transcripts if one.sequence.choice == 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_head(model: str, name: str, created: int) -> dict[str, Any]:
    """What the document of a chat's answer begins with. name: the request's id. created: seconds since 1970."""
    return {"id": f"chatcmpl-{name}", "object": "chat.completion", "created": created, "model": model}


def chat_logprobs(tokens: SequenceOf[session_pb2.TokenLogprob], text_of: TokenText) -> dict[str, Any]:
    """Log probabilities in the shape of chats."""

    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        text = text_of(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = []
    for token in tokens:
        top = [shown(one.token_id, one.logprob) for one in token.top]
        content.append({**shown(token.token_id, token.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


class OpenAiAnswer:
    """The answer of one call, in either of OpenAI's two shapes."""

    def __init__(
        self, call: GenerateCall, model: str, name: str, created: int, transcripts: list[Transcript], text_of: TokenText
    ) -> None:
        """name: the request's id. created: seconds since 1970. transcripts: one per sequence, filled by `events`."""
        self._chat = call.api is Api.CHAT
        self._call = call
        self._transcripts = transcripts
        self._text_of = text_of
        self._around_text: dict[int, list[bytes]] = {}
        """By sequence that has begun: a chunk before its text, and behind it, where there are no log probabilities."""
        prefix, kind = ("chatcmpl", "chat.completion") if self._chat else ("cmpl", "text_completion")
        self._head = {"id": f"{prefix}-{name}", "object": kind, "created": created, "model": model}
        chunk_kind = "chat.completion.chunk" if self._chat else kind
        self._chunk_head = {**self._head, "object": chunk_kind}
        # Only the choice of a chunk differs from one to the next.
        self._before = b"data: " + orjson.dumps(self._chunk_head)[:-1] + b',"choices":['
        self._behind = b'],"usage":null}\n\n' if call.include_usage else b"]}\n\n"

    def document(self) -> dict[str, Any]:
        """The whole answer, once every transcript is complete."""
        choices = [self._choice(one) for one in self._transcripts]
        return {**self._head, "choices": choices, "usage": usage(self._transcripts)}

    def events(self, news: list[News]) -> bytes:
        """The events that news bring, to be written in one piece."""
        written = []
        for one in news:
            index, delta = one.index, one.delta
            transcript = self._transcripts[index]
            plain = transcript.sequence.item.logprobs is None and not self._call.continuous_usage
            offset = 0 if plain else len(transcript.text)
            transcript.add(delta)
            around = self._around_text.get(index)
            if around is None:
                around = self._around_text[index] = self._chunk(index, self._body(_TEXT), None).rsplit(_QUOTED_TEXT, 1)
                written += self._greeting(transcript)
            finish = transcript.finish_reason
            # The last text of a completion says how it ended; a chat says so by itself.
            together = None if self._chat else finish
            if plain and together is None:
                if text := delta.text:
                    written += around[0], orjson.dumps(text), around[1]
            elif delta.text or delta.logprobs or together is not None:
                logprobs = self._logprobs(transcript, delta.logprobs, offset) if delta.logprobs else None
                written.append(self._chunk(index, self._body(delta.text), together, logprobs))
            if self._chat and finish is not None:
                written.append(self._chunk(index, {"delta": {}}, finish))
        return b"".join(written)

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        if not self._call.include_usage:
            return DONE
        return event({**self._chunk_head, "choices": [], "usage": usage(self._transcripts)}) + DONE

    def _body(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._chat else {"text": text}

    def _greeting(self, one: Transcript) -> list[bytes]:
        """What comes before the first news of an answer: a chat's role, or the prompt."""
        if self._chat:
            return [self._chunk(one.sequence.index, {"delta": {"role": "assistant", "content": ""}}, None)]
        return [self._chunk(one.sequence.index, {"text": one.sequence.echo}, None)] if one.sequence.echo else []

    def _chunk(
        self, index: int, body: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": finish_reason}
        behind = self._behind
        if self._call.continuous_usage:
            behind = b'],"usage":' + orjson.dumps(usage(self._transcripts)) + b"}\n\n"
        return self._before + orjson.dumps(choice) + behind

    def _choice(self, one: Transcript) -> dict[str, Any]:
        body: dict[str, Any] = {"text": one.sequence.echo + one.text}
        if self._chat:
            body = {"message": {"role": "assistant", "content": one.text, "refusal": None}}
        # Where the prompt's could not be had, the answer's begin behind it.
        offset = 0 if one.prompt_logprobs else len(one.sequence.echo)
        logprobs = self._logprobs(one, [*one.prompt_logprobs, *one.logprobs], offset)
        ended = {"finish_reason": one.finish_reason, "matched_stop": one.matched_stop}
        return {"index": one.sequence.index, **body, "logprobs": logprobs, **ended}

    def _logprobs(
        self, one: Transcript, tokens: SequenceOf[session_pb2.TokenLogprob], offset: int
    ) -> dict[str, Any] | None:
        """Log probabilities in the shape of the API. offset: characters of the answer before these tokens."""
        if one.sequence.item.logprobs is None:
            return None
        if self._chat:
            return chat_logprobs(tokens, self._text_of)
        texts = [self._text_of(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob if token.HasField("logprob") else None for token in tokens],
            "top_logprobs": [self._top_texts(token) if token.HasField("logprob") else None for token in tokens],
            "text_offset": offsets,
        }

    def _top_texts(self, token: session_pb2.TokenLogprob) -> dict[str, float]:
        """Alternatives by text. Parts of characters may share one; the likeliest, which comes first, stands then."""
        found: dict[str, float] = {}
        for top in token.top:
            found.setdefault(self._text_of(top.token_id), top.logprob)
        return found
