"""Answers of /v1/responses, whichever process of the gateway keeps them: each is kept where it was made."""

from __future__ import annotations

import re
import secrets
from typing import Final

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api.responses_store import Kept, ResponseStore
from tandem.gateway.siblings.asking import Siblings

_ID: Final = re.compile(r"resp_([0-9a-f]{2})[0-9a-f]{46}")


class Responses:
    """This process's own answers, and those of its siblings."""

    def __init__(self, store: ResponseStore, siblings: Siblings | None) -> None:
        """siblings: None where this process is the whole gateway."""
        self._store = store
        self._siblings = siblings

    def new_id(self) -> str:
        """An id for an answer of this process; it names the process."""
        if self._siblings is None:
            return f"resp_{secrets.token_hex(24)}"
        return f"resp_{self._siblings.place.share.index:02x}{secrets.token_hex(23)}"

    def put(self, kept: Kept) -> None:
        """Keeps an answer of this process."""
        self._store.put(kept)

    async def get(self, response_id: str, owner: str = "", field: str | None = None) -> Kept:
        """An answer of this owner. field: what named it.

        Raises UNKNOWN_RESPONSE if it is not kept, or no longer; NO_WORKER if the process that keeps it does not answer.
        """
        siblings, index = self._sibling(response_id)
        if siblings is None:
            return self._store.get(response_id, owner, field)
        try:
            return await siblings.kept(index, response_id, owner)
        except grpc.aio.AioRpcError as error:
            raise self._problem(error, response_id, field) from error

    async def delete(self, response_id: str, owner: str = "") -> None:
        """Forgets an answer. Raises as `get` does."""
        siblings, index = self._sibling(response_id)
        if siblings is None:
            self._store.delete(response_id, owner)
            return
        try:
            await siblings.forget(index, response_id, owner)
        except grpc.aio.AioRpcError as error:
            raise self._problem(error, response_id, None) from error

    def _sibling(self, response_id: str) -> tuple[Siblings | None, int]:
        """Whom to ask for an answer; None: it can only be here."""
        named = _ID.fullmatch(response_id)
        if self._siblings is None or named is None:
            return None, 0
        index = int(named[1], 16)
        return (self._siblings if index in self._siblings.place.others else None), index

    def _problem(self, error: grpc.aio.AioRpcError, response_id: str, field: str | None) -> TandemError:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return self._store.unknown(response_id, field)
        return TandemError(
            ErrorReason.NO_WORKER,
            "The process of this gateway that keeps this response does not answer. Try again in a moment.",
            field=field,
        )
