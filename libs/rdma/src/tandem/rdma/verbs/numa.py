"""The NUMA node of memory, so that a range leaves by a device near to it."""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tandem.rdma.memory import Memory

_MOVE_PAGES: Final = {"x86_64": 279, "aarch64": 239}
"""Number of move_pages(2), which has no function in libc; without target nodes it moves nothing and only tells."""
_UNKNOWN: Final = -1

_libc = ctypes.CDLL(None, use_errno=True)


def nodes_of(memory: Memory) -> npt.NDArray[np.intp]:
    """The node of the first page of each buffer [buffers]; -1 where the kernel does not tell, or has one node only."""
    bases = memory.table()[:, 0]
    unknown = np.full(bases.size, _UNKNOWN, np.intp)
    number = _MOVE_PAGES.get(platform.machine())
    if number is None or not Path("/sys/devices/system/node/node1").exists():
        return unknown
    pages = np.ascontiguousarray(bases & ~np.uint64(mmap.PAGESIZE - 1))
    status = np.full(bases.size, _UNKNOWN, np.int32)
    failed = _libc.syscall(
        number, 0, ctypes.c_ulong(pages.size), ctypes.c_void_p(pages.ctypes.data), None,
        ctypes.c_void_p(status.ctypes.data), 0,
    )  # fmt: skip
    return unknown if failed else np.maximum(status, _UNKNOWN).astype(np.intp)
