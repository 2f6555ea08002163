"""Chains of work requests: their layout is C's, and posting one shows a provider what was asked for."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem.core.errors import TandemError
from tandem.rdma.verbs.chain import Chain, Codes, WriteBatch, encode
from tandem.rdma.verbs.posting import BatchPoster, ReferencePoster, open_poster

CODES = Codes(write=0, write_with_imm=1, signalled=2)
HEADERS = Path("/usr/include")


class SendRequest(ctypes.Structure):
    """struct ibv_send_wr, written down a second time."""

    _fields_ = (
        ("wr_id", ctypes.c_uint64),
        ("next", ctypes.c_void_p),
        ("sg_list", ctypes.c_void_p),
        ("num_sge", ctypes.c_int),
        ("opcode", ctypes.c_int),
        ("send_flags", ctypes.c_uint),
        ("imm_data", ctypes.c_uint32),
        ("remote_addr", ctypes.c_uint64),
        ("rkey", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 72),
    )


class Piece(ctypes.Structure):
    """struct ibv_sge."""

    _fields_ = (("addr", ctypes.c_uint64), ("length", ctypes.c_uint32), ("lkey", ctypes.c_uint32))


Seen = tuple[int, int, int, int, int, int, int, bytes]


def walk(address: int | None) -> list[Seen]:
    """What a provider finds in a chain: id, address, bytes and key here, address and key there, opcode, immediate."""
    seen = []
    while address:
        request = SendRequest.from_address(address)
        assert request.num_sge == 1
        piece = Piece.from_address(request.sg_list)
        imm = request.imm_data.to_bytes(4, "little") if request.opcode == CODES.write_with_imm else b""
        signalled = request.send_flags & CODES.signalled
        seen.append(
            (request.wr_id, piece.addr, piece.length, piece.lkey, request.remote_addr, request.rkey, signalled, imm)
        )
        address = request.next
    return seen


def some_batch(count: int) -> WriteBatch:
    n = np.arange(count, dtype=np.uint64)
    batch = encode(
        CODES,
        local=np.uint64(2**63) + n,
        lengths=(np.uint64(2**31) - n).astype(np.uint32),
        lkeys=(np.uint64(2**32 - 1) - n).astype(np.uint32),
        remote=np.uint64(2**64 - 1) - n,
        rkeys=(np.uint64(2**31) + n).astype(np.uint32),
    )
    tagged = np.arange(2, count, 3)
    batch.tag(tagged, (0x01020300 + tagged).astype(np.uint32), CODES)
    return batch


def expected(first: int, count: int, first_id: int, signalled: tuple[int, ...] = ()) -> list[Seen]:
    return [
        (
            first_id + n - first,
            2**63 + n,
            2**31 - n,
            2**32 - 1 - n,
            2**64 - 1 - n,
            2**31 + n,
            CODES.signalled if n in signalled else 0,
            (0x01020300 + n).to_bytes(4, "big") if n % 3 == 2 else b"",
        )
        for n in range(first, first + count)
    ]


def test_a_provider_sees_what_was_asked_for() -> None:
    batch, chain = some_batch(10), Chain(4)
    batch.signal(3, CODES)
    for first, count, first_id in ((0, 4, 2**60), (5, 1, 7), (2, 3, 2**64 - 5), (0, 4, 0)):
        seen = chain.post(lambda: walk(chain.address), batch, first, count, first_id)
        assert seen == expected(first, count, first_id, signalled=(3,))


def test_a_chain_is_whole_again_after_a_failure() -> None:
    batch, chain = some_batch(3), Chain(3)
    with pytest.raises(ZeroDivisionError):
        chain.post(lambda: 1 // 0, batch, 0, 1, 0)
    assert len(chain.post(lambda: walk(chain.address), batch, 0, 3, 0)) == 3


class Recorder:
    """Stands for pyverbs, and for a queue pair."""

    PyverbsError = OSError
    codes = CODES
    IBV_WR_RDMA_WRITE = CODES.write

    def __init__(self, *, refuse: bool = False) -> None:
        self.seen: list[Seen] = []
        self.open = 0
        self._refuse = refuse

    class _Object:
        """Frees its memory when it is told to, and not otherwise."""

        def __init__(self, recorder: Recorder, values: tuple[Any, ...]) -> None:
            self.values, self.remote, self._recorder = values, (0, 0), recorder
            recorder.open += 1

        def set_wr_rdma(self, rkey: int, address: int) -> None:
            self.remote = (address, rkey)

        def close(self) -> None:
            self._recorder.open -= 1

    def SGE(self, *values: int) -> _Object:  # noqa: N802
        return self._Object(self, values)

    def SendWR(self, *values: Any) -> _Object:  # noqa: N802
        return self._Object(self, values)

    def post_send(self, request: _Object) -> None:
        if self._refuse:
            raise OSError("no room")
        wr_id, opcode, _, imm, (piece,), flags = request.values
        shown = imm.to_bytes(4, "little") if opcode == CODES.write_with_imm else b""
        self.seen.append((wr_id, *piece.values, *request.remote, flags, shown))


def test_one_by_one_posts_the_same() -> None:
    recorder, batch = Recorder(), some_batch(10)
    batch.signal(4, CODES)
    poster = open_poster(recorder, recorder, "reference", 4)  # type: ignore[arg-type]
    assert isinstance(poster, ReferencePoster)
    poster.post(batch, 2, 6, 40)
    assert recorder.seen == expected(2, 6, 40, signalled=(4,))
    assert not recorder.open, "each request is freed, and its piece"


def test_a_refused_request_is_told_and_freed() -> None:
    recorder = Recorder(refuse=True)
    poster = open_poster(recorder, recorder, "reference", 4)  # type: ignore[arg-type]
    with pytest.raises(TandemError, match=r"TRANSFER_FAILED.*no room"):
        poster.post(some_batch(3), 0, 3, 0)
    assert not recorder.open


def test_a_release_whose_objects_are_different_is_posted_one_by_one() -> None:
    recorder = Recorder()
    assert open_poster(recorder, recorder, "auto", 4).path == "reference"  # type: ignore[arg-type]
    with pytest.raises(TandemError, match=r"NOT_SUPPORTED.*inside pyverbs'"):
        BatchPoster(recorder, recorder, 4)  # type: ignore[arg-type]
    assert not recorder.open


@pytest.mark.rdma
@pytest.mark.cc
def test_the_layout_is_that_of_the_header(tmp_path: Path) -> None:
    if not (HEADERS / "infiniband/verbs.h").is_file():
        pytest.skip("infiniband/verbs.h is not installed (Debian: libibverbs-dev)")
    fields = (
        "wr_id",
        "next",
        "sg_list",
        "num_sge",
        "opcode",
        "send_flags",
        "imm_data",
        "wr.rdma.remote_addr",
        "wr.rdma.rkey",
    )
    offsets = ", ".join(f"offsetof(struct ibv_send_wr, {name})" for name in fields)
    source = tmp_path / "layout.c"
    source.write_text(
        f"""#include <infiniband/verbs.h>
        #include <stddef.h>
        #include <stdio.h>
        int main(void) {{
            size_t all[] = {{ {offsets}, sizeof(struct ibv_send_wr), sizeof(struct ibv_sge),
                offsetof(struct ibv_sge, addr), offsetof(struct ibv_sge, length), offsetof(struct ibv_sge, lkey) }};
            for (size_t n = 0; n < sizeof all / sizeof *all; n++) printf("%zu ", all[n]);
        }}"""
    )
    program = tmp_path / "layout"
    subprocess.run(["cc", "-o", program, source], check=True, timeout=60)
    printed = subprocess.run([program], check=True, timeout=10, capture_output=True, text=True).stdout
    ours = [getattr(SendRequest, name.rpartition(".")[2]).offset for name in fields]
    pieces = [getattr(Piece, name).offset for name in ("addr", "length", "lkey")]
    assert list(map(int, printed.split())) == [*ours, ctypes.sizeof(SendRequest), ctypes.sizeof(Piece), *pieces]
