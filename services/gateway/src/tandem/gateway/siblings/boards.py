"""One dashboard of all processes: what each knows alone, put together by the one that a viewer has come to."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc
import orjson
from pydantic import TypeAdapter

from tandem.gateway.dashboard.board import Board, Part
from tandem.gateway.siblings.asking import Siblings

log = logging.getLogger(__name__)

_PARTS: Final = TypeAdapter(Part)


class Boards:
    """Makes snapshots of this process, or of all."""

    def __init__(self, board: Board, siblings: Siblings | None) -> None:
        """siblings: None where this process is the whole gateway."""
        self._board = board
        self._siblings = siblings

    def own(self) -> bytes:
        """What this process knows alone, for a sibling."""
        return _PARTS.dump_json(self._board.part())

    async def encoded(self) -> bytes:
        """This moment as JSON. Processes that do not answer in time are counted as silent."""
        if self._siblings is None:
            return orjson.dumps(self._board.snapshot())
        others = self._siblings.place.others
        answers = await asyncio.gather(*(self._of(self._siblings, index) for index in others))
        parts = [part for part in answers if part is not None]
        return orjson.dumps(self._board.snapshot(parts, len(others) - len(parts)))

    async def _of(self, siblings: Siblings, index: int) -> Part | None:
        try:
            return _PARTS.validate_json(await siblings.board(index))
        except grpc.aio.AioRpcError as error:
            log.debug("process %d shows nothing: %s: %s", index, error.code().name, error.details())
            return None
