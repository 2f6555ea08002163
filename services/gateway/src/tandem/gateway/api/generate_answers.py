"""Answers of /generate, in SGLang's shape: JSON documents and server-sent events with all of the text so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tandem.gateway.api.openai_answers import DONE, TokenText, event
from tandem.gateway.calls import GenerateCall
from tandem.gateway.mailbox import News
from tandem.gateway.transcript import Transcript
from tandem.v1 import session_pb2


class GenerateAnswer:
    """The answer of one call."""

    def __init__(
        self,
        call: GenerateCall,
        name: str,
        transcripts: list[Transcript],
        text_of: TokenText,
        elapsed: Callable[[], float],
    ) -> None:
        """name: the request's id. transcripts: one per sequence, filled by `events`. elapsed: seconds so far."""
        self._call = call
        self._name = name
        self._transcripts = transcripts
        self._text_of = text_of
        self._elapsed = elapsed

    def document(self) -> Any:
        """The whole answer, once every transcript is complete: one object, or a list of them for a batch."""
        answers = [self._state(one) for one in self._transcripts]
        return answers[0] if self._call.single else answers

    def events(self, news: list[News]) -> bytes:
        """One event for each sequence that has news, to be written in one piece."""
        changed = dict.fromkeys(one.index for one in news)
        for one in news:
            self._transcripts[one.index].add(one.delta)
        return b"".join(event(self._indexed(self._transcripts[index])) for index in changed)

    def end(self) -> bytes:
        """The last event of a stream that went well."""
        return DONE

    def _indexed(self, one: Transcript) -> dict[str, Any]:
        state = self._state(one)
        return state if self._call.single else {**state, "index": one.sequence.index}

    def _state(self, one: Transcript) -> dict[str, Any]:
        return {"text": one.text, "output_ids": one.token_ids, "meta_info": self._meta(one)}

    def _meta(self, one: Transcript) -> dict[str, Any]:
        item = one.sequence.item
        name = item.rid or (self._name if len(self._transcripts) == 1 else f"{self._name}-{one.sequence.index}")
        meta: dict[str, Any] = {
            "id": name if item.n == 1 or not item.rid else f"{name}-{one.sequence.choice}",
            "finish_reason": _finish_reason(one),
            "prompt_tokens": len(one.sequence.input_ids),
            "completion_tokens": one.completion_tokens,
            "cached_tokens": one.cached_tokens,
            "e2e_latency": self._elapsed(),
        }
        if item.logprobs is not None:
            meta["input_token_logprobs"] = self._pairs(one, one.prompt_logprobs)
            meta["output_token_logprobs"] = self._pairs(one, one.logprobs)
            if item.logprobs.top:
                meta["input_top_logprobs"] = self._tops(one, one.prompt_logprobs)
                meta["output_top_logprobs"] = self._tops(one, one.logprobs)
        return meta

    def _pairs(self, one: Transcript, tokens: Iterable[session_pb2.TokenLogprob]) -> list[list[Any]]:
        """[log probability, token id, text or null] for each token."""
        return [
            [token.logprob if token.HasField("logprob") else None, token.token_id, self._text(one, token.token_id)]
            for token in tokens
        ]

    def _tops(self, one: Transcript, tokens: Iterable[session_pb2.TokenLogprob]) -> list[list[list[Any]] | None]:
        return [
            [[top.logprob, top.token_id, self._text(one, top.token_id)] for top in token.top] or None
            for token in tokens
        ]

    def _text(self, one: Transcript, token_id: int) -> str | None:
        return self._text_of(token_id) if one.sequence.item.with_logprob_text else None


def _finish_reason(one: Transcript) -> dict[str, Any] | None:
    finish = one.finish
    if finish is None:
        return None
    if finish.kind == session_pb2.FINISH_KIND_LENGTH:
        return {"type": "length", "length": one.completion_tokens}
    return {"type": "stop", "matched": one.matched_stop}
