"""Messages that go on in further messages: where a packed list of numbers is cut so that each part fits one."""

from __future__ import annotations

from typing import Final

import numpy as np

from tandem.core.pages import I64, U32
from tandem.rpc.options import MAX_MESSAGE_BYTES

MAX_PARTS: Final = 64
"""Most parts of one message: bounds what a peer can make us collect."""

ENVELOPE_BYTES: Final = 256
"""More than what surrounds the lists of a part: numbers, names, and the message that carries it."""

PART_BYTES: Final = MAX_MESSAGE_BYTES - ENVELOPE_BYTES
"""What the lists of one part may take."""

MAX_VARINT_BYTES: Final = 5
"""A uint32 in a packed field takes 1 to 5 bytes."""


def varint_bytes(values: U32) -> I64:
    """Bytes that each value takes in a packed field."""
    sizes = np.ones(values.shape, np.int64)
    for bits in (7, 14, 21, 28):
        sizes += values >= np.uint32(1 << bits)
    return sizes


def cut(sizes: I64, first: int, rest: int) -> list[int]:
    """Ends of the parts of a list whose items take `sizes` bytes, as many items in each part as fit.

    first, rest: bytes that the first and every other part hold. rest must hold any item; a first part that holds none
    is empty. There is always one part; the last end is the list's.
    """
    if rest < int(sizes.max(initial=1)):
        raise ValueError(f"parts of {rest} bytes hold no item")
    total = np.cumsum(sizes)
    ends = [int(np.searchsorted(total, first, side="right"))]
    while ends[-1] < sizes.size:
        done = int(total[ends[-1] - 1]) if ends[-1] else 0
        ends.append(int(np.searchsorted(total, done + rest, side="right")))
    return ends
