"""Work requests as numpy lays them out: just as C has them.

The layouts are those of <infiniband/verbs.h> on 64-bit little-endian machines: part of the interface between a program
and libibverbs, which does not change. tests/unit/verbs compares them with the header where a compiler is at hand.

    struct ibv_send_wr, in words of 64 bits           struct ibv_sge
      0  wr_id                                          0  addr
      1  next                                           1  length, lkey
      2  sg_list
      3  num_sge, opcode        these four are
      4  send_flags, imm_data   the same whenever
      5  remote_addr            the request is
      6  rkey                   posted
      7..15 not used for RDMA writes
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tandem.core.pages import I64, U32
from tandem.rdma.api import U64

REQUEST_WORDS: Final = 16
PIECE_WORDS: Final = 2
_WR_ID, _NEXT, _SG_LIST, _FIXED, _FLAGS = 0, 1, 2, 3, 4
_FIXED_WORDS: Final = 4
_WORD: Final = 8
_HIGH: Final = np.uint64(32)

_WORDS_TOGETHER: Final = np.dtype((np.void, _WORD * _FIXED_WORDS))
_FIXED_PART: Final = np.dtype(
    {"names": ["fixed"], "formats": [_WORDS_TOGETHER], "offsets": [_WORD * _FIXED], "itemsize": _WORD * REQUEST_WORDS}
)


@dataclass(frozen=True, slots=True)
class Codes:
    """Constants of the enums."""

    write: int
    write_with_imm: int
    signalled: int


@dataclass(frozen=True, slots=True, eq=False)
class WriteBatch:
    """n RDMA writes, encoded; all but their identity, which they get when they are posted."""

    pieces: U64
    """struct ibv_sge of each [n, 2]."""
    fixed: U64
    """Words 3 to 6 of each request [n, 4]."""

    together: npt.NDArray[np.void]
    """`fixed` with one item for the words of a request [n]: numpy copies that faster."""

    def signal(self, index: int, codes: Codes) -> None:
        """Has one request ask for a completion."""
        self.fixed[index, _FLAGS - _FIXED] |= np.uint64(codes.signalled)

    def tag(self, indices: I64, tags: U32, codes: Codes) -> None:
        """Has requests show the receiver a tag each, as immediate data; not yet signalled ones [k]."""
        self.fixed[indices, 0] = 1 | codes.write_with_imm << 32
        self.fixed[indices, _FLAGS - _FIXED] = tags.byteswap().astype(np.uint64) << _HIGH  # in network order


def encode(codes: Codes, local: U64, lengths: U32, lkeys: U32, remote: U64, rkeys: U32) -> WriteBatch:
    """Encodes writes that the receiver does not notice; arrays of equal length [n]."""
    count = local.size
    pieces = np.empty((count, PIECE_WORDS), np.uint64)
    pieces[:, 0] = local
    pieces[:, 1] = lengths.astype(np.uint64) | lkeys.astype(np.uint64) << _HIGH
    fixed = np.zeros((count, _FIXED_WORDS), np.uint64)
    fixed[:, 0] = 1 | codes.write << 32
    fixed[:, 2] = remote
    fixed[:, 3] = rkeys
    return WriteBatch(pieces, fixed, fixed.view(_WORDS_TOGETHER)[:, 0])


def layouts_fit() -> bool:
    """Whether this machine's C has these layouts."""
    return sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == _WORD


class Chain:
    """Requests that are linked once, and filled again for each post: three copies, however many they are."""

    def __init__(self, most: int) -> None:
        """most: requests in the longest chain."""
        requests, pieces = np.zeros((most, REQUEST_WORDS), np.uint64), np.zeros((most, PIECE_WORDS), np.uint64)
        self._steps = np.arange(most, dtype=np.uint64)
        self.address = int(requests.ctypes.data)
        """Of the first request."""
        self.head = requests[0].data.cast("B")
        """The bytes of the first request."""
        self._following = (self.address + _WORD * REQUEST_WORDS * (self._steps + np.uint64(1))).tolist()
        requests[:, _NEXT] = self._following
        requests[:, _SG_LIST] = int(pieces.ctypes.data) + _WORD * PIECE_WORDS * self._steps
        self._first_id = np.zeros((), np.uint64)
        self._ids, self._pieces = requests[:, _WR_ID], pieces
        self._next = requests[:, _NEXT].data
        self._fixed = requests.view(_FIXED_PART)[:, 0]["fixed"]

    def post(self, call: Callable[[], Any], batch: WriteBatch, first: int, count: int, first_id: int) -> Any:
        """Fills in requests first..first+count of a batch, whose ids count up from first_id, and calls what posts
        the chain; the provider has copied it when that returns. count: 1..most.
        """
        end = first + count
        self._first_id[()] = first_id
        np.add(self._steps[:count], self._first_id, out=self._ids[:count])
        self._pieces[:count] = batch.pieces[first:end]
        self._fixed[:count] = batch.together[first:end]
        self._next[count - 1] = 0
        try:
            return call()
        finally:
            self._next[count - 1] = self._following[count - 1]
