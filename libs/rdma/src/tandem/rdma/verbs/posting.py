"""Posting RDMA writes: encoded arrays in, work requests out.

    batch       requests laid out by numpy, and one call of pyverbs for a whole chain of them
    reference   pyverbs' objects as its own documentation uses them, made and freed for each request

Both post the same; `auto` is batch where that works. If one request of a chain is refused the queue pair is of no use
any more: those before it are posted.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any, Final, Protocol

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64
from tandem.rdma.verbs.chain import REQUEST_WORDS, Chain, WriteBatch, layouts_fit
from tandem.rdma.verbs.library import Library

_MARK: Final = 0x7A4D_57EA_1F2E_90C3
"""A number that is found nowhere by chance."""
_LONGEST_CHAIN: Final = 512
_LOW: Final = 0xFFFF_FFFF

_log = logging.getLogger(__name__)


class Poster(Protocol):
    """Posts on one queue pair."""

    path: str
    """Which way it posts."""

    def post(self, batch: WriteBatch, first: int, count: int, first_id: int) -> None:
        """Posts requests first..first+count of a batch; their wr_ids count up from first_id.

        Raises TandemError(TRANSFER_FAILED).
        """

    def close(self) -> None:
        """Frees its requests; the queue pair is still there. Idempotent."""


class BatchPoster:
    """See the module.

    pyverbs posts one of its own objects. The C structure inside that object is made the first of the chain for the
    time of the call, so no address of a queue pair and no table of functions is needed, and every release will do.
    """

    path = "batch"

    def __init__(self, library: Library, qp: Any, most: int) -> None:
        """Raises TandemError(NOT_SUPPORTED) if this machine or release does not allow it."""
        if not layouts_fit():
            raise TandemError(ErrorReason.NOT_SUPPORTED, "the layout of work requests is not known on this machine")
        self._error = library.PyverbsError
        self._qp = qp
        self._most = min(most, _LONGEST_CHAIN)
        self._chain = Chain(self._most)
        codes = library.codes
        piece = library.SGE(0, 0, 0)
        self._request = library.SendWR(_MARK, codes.write_with_imm, 1, 0, [piece], codes.signalled)
        piece.close()
        try:
            self._inside = _structure_inside(self._request, codes.write_with_imm, codes.signalled)
        except TandemError:
            self._request.close()
            raise
        self._own = bytes(self._inside)

    def post(self, batch: WriteBatch, first: int, count: int, first_id: int) -> None:
        """See `Poster`."""
        end = first + count
        try:
            for start in range(first, end, self._most):
                part = min(self._most, end - start)
                self._chain.post(self._call, batch, start, part, first_id + start - first)
        except self._error as error:
            raise _refused(error) from error

    def _call(self) -> None:
        self._inside[:] = self._chain.head
        try:
            self._qp.post_send(self._request)
        finally:
            self._inside[:] = self._own  # what the object frees at its end is its own again

    def close(self) -> None:
        """See `Poster`."""
        if self._request is not None:
            self._request.close()
            self._request = None


class ReferencePoster:
    """See the module."""

    path = "reference"

    def __init__(self, library: Library, qp: Any) -> None:
        self._library = library
        self._qp = qp

    def post(self, batch: WriteBatch, first: int, count: int, first_id: int) -> None:
        """See `Poster`."""
        library, qp = self._library, self._qp
        pieces, fixed = batch.pieces[first : first + count].tolist(), batch.fixed[first : first + count].tolist()
        for n, ((address, piece), (code, flags, remote, rkey)) in enumerate(zip(pieces, fixed, strict=True)):
            sge = library.SGE(address, piece & _LOW, piece >> 32)
            request = library.SendWR(first_id + n, code >> 32, 1, flags >> 32, [sge], flags & _LOW)
            request.set_wr_rdma(rkey, remote)
            try:
                qp.post_send(request)
            except library.PyverbsError as error:
                raise _refused(error) from error
            finally:
                request.close()  # releases up to 64 free the memory of both only so
                sge.close()

    def close(self) -> None:
        """See `Poster`."""


def open_poster(library: Library, qp: Any, path: str, most: int) -> Poster:
    """A poster for one queue pair. path: one of `library.PATHS`. most: requests that it may have posted at a time.

    Raises TandemError(NOT_SUPPORTED) if the path that is asked for does not work here.
    """
    if path != "reference":
        try:
            return BatchPoster(library, qp, most)
        except TandemError as error:
            if path == "batch":
                raise
            _log.info("writes are posted one by one: %s", error.message)
    return ReferencePoster(library, qp)


def _structure_inside(request: Any, opcode: int, flags: int) -> memoryview:
    """The bytes of the struct ibv_send_wr inside a pyverbs SendWR that was made with _MARK, found by its contents.

    Raises TandemError(NOT_SUPPORTED) if it is not there.
    """
    kind = type(request)
    words = (kind.__basicsize__ - object.__basicsize__) // 8
    body = (ctypes.c_uint64 * words).from_address(id(request) + object.__basicsize__)
    memory: U64 = np.ctypeslib.as_array(body)
    for at in range(words - REQUEST_WORDS + 1):
        found = memory[at : at + REQUEST_WORDS]
        wr_id, following, _, fixed, flagged = found[:5].tolist()
        if (wr_id, following, fixed, flagged) == (_MARK, 0, 1 | opcode << 32, flags):
            return found.data.cast("B")
    raise TandemError(ErrorReason.NOT_SUPPORTED, f"no work request was found inside pyverbs' {kind.__name__}")


def _refused(error: Exception) -> TandemError:
    return TandemError(ErrorReason.TRANSFER_FAILED, f"the device takes no more writes: {error}")
