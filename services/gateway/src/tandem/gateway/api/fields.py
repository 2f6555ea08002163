"""Reads fields of a JSON object, each with a type and a range; what does not fit is refused by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from tandem.core.errors import ErrorReason, TandemError


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that others know and we do not offer."""

    advice: str
    """What to do instead."""
    harmless: tuple[object, ...] = ()
    """Values that ask for nothing, and so are let pass."""


def refuse(field: str, message: str) -> NoReturn:
    """Raises TandemError(INVALID_ARGUMENT) for a field."""
    raise TandemError(ErrorReason.INVALID_ARGUMENT, f"'{field}' {message}", field=field)


def parse_object(body: bytes) -> dict[str, Any]:
    """Reads a body that must be one JSON object."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"The body is not valid JSON: {error}. Send one JSON object."
        ) from None
    if not isinstance(parsed, dict):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"The body must be one JSON object, not {kind_of(parsed)}.")
    return parsed


def kind_of(value: object) -> str:
    """Name of a JSON value's type, for people."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value as an error may show it: short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """A JSON object that is being read. null counts as absent."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def path(self, name: str) -> str:
        """Full name of a field."""
        return f"{self._prefix}{name}"

    def raw(self, name: str) -> Any:
        """A field as it is, None if absent."""
        return self._values.get(name)

    def require_known(self, known: frozenset[str], unsupported: Mapping[str, Unsupported]) -> None:
        """Refuses fields outside `known`; those in `unsupported` with the advice it gives."""
        for name, value in self._values.items():
            if name in known or value is None:
                continue
            if name in unsupported:
                if any(type(value) is type(one) and value == one for one in unsupported[name].harmless):
                    continue
                refuse(self.path(name), f"is not supported here. {unsupported[name].advice}")
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"Did you mean '{self.path(close[0])}'?" if close else "Leave it out."
            refuse(self.path(name), f"is not a field of this request. {hint}")

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            refuse(self.path(name), f"must be true or false, not {shown(value)}.")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number of low..high."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            refuse(self.path(name), f"must be a whole number of {low}..{high}, not {shown(value)}.")
        return value

    def number(self, name: str, low: float, high: float, *, above_low: bool = False) -> float | None:
        """A finite number of low..high; above_low leaves `low` itself out."""
        value = self.raw(name)
        if value is None:
            return None
        span = f"above {low:g} and at most {high:g}" if above_low else f"of {low:g}..{high:g}"
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not ok or not low <= value <= high or (above_low and value == low):
            refuse(self.path(name), f"must be a number {span}, not {shown(value)}.")
        return float(value)

    def text(self, name: str, low: int, high: int) -> str | None:
        """A string of low..high characters."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str) or not low <= len(value) <= high:
            refuse(self.path(name), f"must be a string of {low}..{high} characters, not {shown(value)}.")
        return value

    def texts(self, name: str, most: int, most_characters: int) -> tuple[str, ...]:
        """A string or a list of strings, each of 1..most_characters."""
        value = self.raw(name)
        if value is None:
            return ()
        texts = [value] if isinstance(value, str) else value
        fits = isinstance(texts, list) and len(texts) <= most
        if not fits or not all(isinstance(text, str) and 1 <= len(text) <= most_characters for text in texts):
            refuse(
                self.path(name),
                f"must be a string or a list of at most {most} strings, each of 1..{most_characters} characters,"
                f" not {shown(value)}.",
            )
        return tuple(texts)

    def object(self, name: str) -> dict[str, Any] | None:
        """A JSON object."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            refuse(self.path(name), f"must be an object, not {kind_of(value)}.")
        return value


def token_ids(field: str, value: list[Any]) -> tuple[int, ...]:
    """A non-empty list of token ids. That each is in the vocabulary is checked where the vocabulary is."""
    if not value:
        refuse(field, "is empty. Give at least one token.")
    if not all(type(token) is int and 0 <= token < 2**31 for token in value):
        refuse(field, f"must hold whole numbers of 0..{2**31 - 1} only.")
    return tuple(value)


def is_list_of(value: object, kind: type) -> bool:
    """Whether a value is a list whose first element, if it has one, is a `kind`."""
    return isinstance(value, list) and (not value or isinstance(value[0], kind))
