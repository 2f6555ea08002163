"""Registration of memory that is known by a dma-buf, as a GPU's is.

pyverbs registers only such dma-bufs as it has allocated itself, in every release up to 64, so libibverbs is called for
it: ibv_reg_dmabuf_mr(3), in rdma-core since release 34. That call wants the address of the protection domain, which
pyverbs does not show. It stands in each memory region of the domain, and a region is found inside its pyverbs object by
what the object says of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_int, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import Buffer
from tandem.rdma.iov import pull_bytes

_LIBRARY: Final = "libibverbs.so.1"
_WORD: Final = 8


class _Region(Structure):
    """struct ibv_mr of <infiniband/verbs.h>."""

    _fields_ = (
        ("context", c_void_p),
        ("pd", c_void_p),
        ("addr", c_void_p),
        ("length", c_size_t),
        ("handle", c_uint32),
        ("lkey", c_uint32),
        ("rkey", c_uint32),
    )


class DmaBufRegion:
    """A memory region over a dma-buf; in messages and keys it has the buffer's own addresses."""

    def __init__(self, sibling: Any, buffer: Buffer, access: int) -> None:
        """sibling: a pyverbs MR of the same protection domain, which outlives this one. access: IBV_ACCESS_...

        Raises TandemError(NOT_SUPPORTED) with the reason.
        """
        assert buffer.dmabuf is not None
        self._verbs = _library()
        domain = protection_domain_of(sibling)
        offset, fd = buffer.dmabuf.offset, buffer.dmabuf.fd
        region = self._verbs.ibv_reg_dmabuf_mr(domain, offset, buffer.bytes, buffer.address, fd, access)
        if not region:
            why = os.strerror(ctypes.get_errno())
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"the device takes no memory by a dma-buf: {why}")
        self._region = region
        self.lkey, self.rkey = int(region.contents.lkey), int(region.contents.rkey)

    def close(self) -> None:
        """Deregisters it. Idempotent."""
        region, self._region = self._region, None
        if region is not None:
            self._verbs.ibv_dereg_mr(region)


def protection_domain_of(region: Any) -> int:
    """Address of the struct ibv_pd of a pyverbs MR. Raises TandemError(NOT_SUPPORTED) if it can't be told."""
    kind = type(region)
    words = (kind.__basicsize__ - object.__basicsize__) // _WORD
    body = (c_uint64 * words).from_address(id(region) + object.__basicsize__)
    for word in body:
        found = _peek(word)
        if found is None or not found.pd:
            continue
        if (found.addr, found.length, found.lkey, found.rkey) == (region.buf, region.length, region.lkey, region.rkey):
            return int(found.pd)
    raise TandemError(ErrorReason.NOT_SUPPORTED, f"no memory region was found inside pyverbs' {kind.__name__}")


def _peek(address: int) -> _Region | None:
    """What lies at an address of this process, if that is memory at all: read by the kernel, which tells."""
    try:
        return _Region.from_buffer_copy(pull_bytes(os.getpid(), address, sizeof(_Region)))
    except OSError:
        return None


@functools.cache
def _library() -> Any:
    try:
        verbs = ctypes.CDLL(_LIBRARY, use_errno=True)
        verbs.ibv_reg_dmabuf_mr.argtypes = (c_void_p, c_uint64, c_size_t, c_uint64, c_int, c_int)
    except (OSError, AttributeError) as error:
        raise TandemError(ErrorReason.NOT_SUPPORTED, f"rdma-core knows no dma-buf: {error}") from error
    verbs.ibv_reg_dmabuf_mr.restype = POINTER(_Region)
    verbs.ibv_dereg_mr.argtypes = (POINTER(_Region),)
    verbs.ibv_dereg_mr.restype = c_int
    return verbs
