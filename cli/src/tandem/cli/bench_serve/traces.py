"""Traces of requests: Mooncake's JSON lines and Azure's CSV. Pure: lines in, rows out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError

MOONCAKE_PAGE_TOKENS: Final = 512
"""Prompt tokens that one of Mooncake's hash ids stands for; the last may stand for fewer."""
_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    at_s: float
    """From any origin that all rows share."""
    prompt_tokens: int
    """At least 1."""
    new_tokens: int
    """At least 1."""
    page_keys: tuple[int, ...] = ()
    """Equal keys at the start of two prompts: equal tokens, MOONCAKE_PAGE_TOKENS for each. Empty: nothing is shared."""


def read_trace(lines: Iterable[str]) -> list[TraceRow]:
    """Rows in the order of their times; rows that were to generate nothing, or from nothing, are left out.

    The first character tells the format: a brace is Mooncake's. Raises INVALID_ARGUMENT, which names the line.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise _bad(1, "the trace is empty")
    rows = _mooncake(first, numbered) if first[1].lstrip().startswith("{") else _azure(first[1], numbered)
    return sorted((row for row in rows if row.prompt_tokens >= 1 and row.new_tokens >= 1), key=lambda row: row.at_s)


def _mooncake(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[TraceRow]:
    for number, line in (first, *rest):
        try:
            one: dict[str, Any] = json.loads(line)
            tokens, keys = int(one["input_length"]), tuple(map(int, one.get("hash_ids", ())))
            row = TraceRow(float(one["timestamp"]) / 1000, tokens, int(one["output_length"]), keys)
        except (ValueError, KeyError, TypeError) as error:
            raise _bad(number, "is not timestamp (ms), input_length, output_length, hash_ids") from error
        if keys and not len(keys) == -(-tokens // MOONCAKE_PAGE_TOKENS):
            raise _bad(number, f"has {len(keys)} hash_ids for {tokens} tokens, one is {MOONCAKE_PAGE_TOKENS}")
        yield row


def _azure(head: str, rest: Iterator[tuple[int, str]]) -> Iterator[TraceRow]:
    names = [name.strip() for name in next(csv.reader([head.lstrip("\ufeff")]))]
    try:
        columns = [names.index(name) for name in _AZURE]
    except ValueError as error:
        raise _bad(1, f"is neither JSON nor a head with {', '.join(_AZURE)}") from error
    for number, line in rest:
        try:
            cells = next(csv.reader([line]))
            stamp, prompt, new = (cells[column].strip() for column in columns)
            yield TraceRow(_seconds(stamp), int(prompt), int(new))
        except (ValueError, IndexError) as error:
            raise _bad(number, f"is not {', '.join(_AZURE)}") from error


def _seconds(stamp: str) -> float:
    """`2023-11-16 18:15:46.6805900`, with or without an offset; seven digits are more than datetime takes."""
    whole, dot, rest = stamp.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))] if dot else ""
    moment = datetime.fromisoformat(whole + rest[len(digits) :])
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() + float(f"0.{digits or 0}")


def _bad(number: int, what: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, f"line {number} of the trace {what}", field="trace")
