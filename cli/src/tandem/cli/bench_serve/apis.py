"""What is sent and what comes back, for each API. Pure: bytes of bodies out, events in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.workload import Piece, Question, token_ids

CACHED_PIECES: Final = 4096
_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work night point home water room mother area money story "
    "fact month lot right study book eye job word business issue side kind head house friend father power hour game "
    "line end member law car city name team idea body back face level door health person art war history party"
)
_WORDS: Final = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Asking:
    """What all requests have in common."""

    api: Api
    model: str
    vocabulary: int
    """Token ids are below it."""
    ignore_eos: bool = True
    """An answer is as long as was asked for; SGLang's and vLLM's field, which others may refuse."""
    sessions: bool = True
    """Whether the conversation is named to which a request belongs."""


def body_of(asking: Asking, question: Question) -> bytes:
    """JSON of a streamed, greedy request. Prompts are token ids; of a chat one message of words, about a token each."""
    common: dict[str, Any] = {"stream": True, "temperature": 0}
    if asking.api is Api.GENERATE:
        sampling = {"temperature": 0, "max_new_tokens": question.new_tokens, "ignore_eos": asking.ignore_eos}
        own: dict[str, Any] = {"stream": True, "sampling_params": sampling}
        own |= {"model": asking.model} if asking.model else {}
        return _with_prompt(own, b'"input_ids":[', question, asking)
    common |= {"model": asking.model, "max_tokens": question.new_tokens, "stream_options": {"include_usage": True}}
    if asking.ignore_eos:
        common["ignore_eos"] = True
    if asking.api is Api.CHAT:
        text = " ".join(_piece_words(piece, asking.vocabulary) for piece in question.pieces)
        return json.dumps({**common, "messages": [{"role": "user", "content": text}]}).encode()
    return _with_prompt(common, b'"prompt":[', question, asking)


def _with_prompt(rest: dict[str, Any], name: bytes, question: Question, asking: Asking) -> bytes:
    """Pieces that were sent before are not encoded again: long shared prompts would cost the generator its time."""
    ids = b",".join(_piece_ids(piece, asking.vocabulary) for piece in question.pieces)
    return json.dumps(rest).encode()[:-1] + b"," + name + ids + b"]}"


@lru_cache(CACHED_PIECES)
def _piece_ids(piece: Piece, vocabulary: int) -> bytes:
    return ",".join(map(str, token_ids(piece, vocabulary))).encode()


@lru_cache(CACHED_PIECES)
def _piece_words(piece: Piece, vocabulary: int) -> str:
    return " ".join(_WORDS[token % len(_WORDS)] for token in token_ids(piece, vocabulary))


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    text: bool = False
    """It brings some; of /generate: it brings a token, which may have no text yet."""
    new_tokens: int = 0
    """So far, as the server says; 0 where it does not."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""
    """Short name of what failed."""


def read_event(api: Api, data: bytes) -> Event:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no event of the API."""
    found: dict[str, Any] = json.loads(data)
    if found.get("error"):
        return Event(error=f"stream_{error_name(found)}")
    if api is Api.GENERATE:
        info = found["meta_info"]
        counts = info["completion_tokens"], info.get("prompt_tokens", 0), info.get("cached_tokens", 0)
        return Event(bool(counts[0]), *counts)
    usage = found.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    text = any(map(_has_text, found["choices"]))
    return Event(text, usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0), cached)


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content"))


def error_name(document: Any) -> str:
    """A short name of what an error document tells: its code or type, or `error`."""
    inner = document.get("error") if isinstance(document, dict) else None
    if isinstance(inner, dict):
        return str(inner.get("code") or inner.get("type") or "error")[:60]
    return "error"
