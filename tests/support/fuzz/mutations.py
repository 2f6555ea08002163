"""Seeded mutations of JSON documents and of bytes."""

from __future__ import annotations

import copy
import random
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**31 - 1, -(2**31), 2**53, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.0, 1e308, -1e308, 0.1, "", "a", "\x00", "\ud83d\ude00", "é" * 50, "[DONE]", "x" * 5000, "\\u0000"),
    *([], {}, [[]], [None], [{}], {"": None}, {"a": {"b": {"c": []}}}, [0] * 300, ["a"] * 40, [[1, 2], [3]]),
)
"""Values that readers may not have thought of."""
ODD_BYTES: Final = (b"\x00", b"\xff" * 9, b"\r\n", b"\n", b" ", b"{", b"[" * 2000, b'"', b"\xc3\x28", b"1" * 400, b":")


def mutate_json(dice: random.Random, document: Any) -> Any:
    """A copy with one to three changes, anywhere."""
    found = copy.deepcopy(document)
    for _ in range(dice.randint(1, 3)):
        found = _change(dice, found)
    return found


def _change(dice: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        name = dice.choice(list(value))
        kind = dice.random()
        if kind < 0.15:
            del value[name]
        elif kind < 0.25:
            value[name + dice.choice(("s", "_", "\x00", "é"))] = value[name]
        elif kind < 0.3:
            value[dice.choice(("stream", "n", "model", "messages", "prompt", "stop", "logprobs"))] = dice.choice(ODD)
        else:
            value[name] = _change(dice, value[name])
        return value
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        if dice.random() < 0.3:
            return value * dice.choice((0, 2, 50))
        value[place] = _change(dice, value[place])
        return value
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.4:
        return value + dice.choice((-1, 1, 2**16, -(2**16)))
    return copy.deepcopy(dice.choice(ODD))


def mutate_bytes(dice: random.Random, data: bytes, most: int = 4) -> bytes:
    """One to `most` changes: bits flipped; pieces cut, doubled, moved or put in."""
    found = bytearray(data)
    for _ in range(dice.randint(1, most)):
        place = dice.randrange(len(found) + 1)
        length = min(dice.choice((1, 2, 4, 16, 64)), len(found) - place)
        match dice.randrange(6):
            case 0 if place < len(found):
                found[place] ^= 1 << dice.randrange(8)
            case 1:
                del found[place : place + length]
            case 2:
                found[place:place] = found[place : place + length]
            case 3:
                found[place:place] = dice.choice(ODD_BYTES)
            case 4:
                found[place : place + length] = dice.randbytes(length)
            case _:
                del found[place:]
    return bytes(found)
