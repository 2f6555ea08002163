"""A Submit as messages: one, or several parts where the prompt does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc import continued
from tandem.v1 import session_pb2


class SubmitParts:
    """The messages of a Submit. It is cut when this is made; each message is made when it is asked for."""

    def __init__(self, submit: session_pb2.Submit, part_bytes: int = continued.PART_BYTES) -> None:
        """part_bytes: what one message may take, without what carries it.

        Raises CONTEXT_TOO_LONG for a prompt that needs more parts than are allowed.
        """
        self._submit = submit
        self._ids = np.asarray(submit.input_ids, np.uint32)
        sizes = continued.varint_bytes(self._ids)
        besides = submit.ByteSize() - int(sizes.sum())
        self._ends = continued.cut(sizes, part_bytes - besides, part_bytes)
        if besides > part_bytes or len(self._ends) > continued.MAX_PARTS:
            raise TandemError(
                ErrorReason.CONTEXT_TOO_LONG,
                f"The prompt and its options take {submit.ByteSize()} bytes on their way to a worker, in"
                f" {len(self._ends)} messages of {part_bytes}; at most {continued.MAX_PARTS} are allowed.",
            )

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[session_pb2.Submit]:
        first = 0
        for number, last in enumerate(self._ends):
            part = session_pb2.Submit()
            if number == 0:
                part.CopyFrom(self._submit)
                del part.input_ids[:]
            part.room = self._submit.room
            part.input_ids.extend(self._ids[first:last].tolist())
            part.part = number
            part.more = last < self._ids.size
            yield part
            first = last
