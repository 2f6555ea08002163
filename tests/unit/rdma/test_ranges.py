"""Memory, extents, cursors and checksums against slow and obvious versions of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma import Buffer, ProviderOffer
from tandem.rdma.checksum import ChunkHasher
from tandem.rdma.choice import choose
from tandem.rdma.grants import extent_of
from tandem.rdma.iov import IOV_MAX, IovCursor
from tandem.rdma.memory import Memory, as_offsets
from tandem.rdma.wire import Frame, FrameKind, Knock, Reply, ReplyKind, Welcome
from tests.support.rdma.pools import u64

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(st.integers(0, 240), st.integers(0, 60)), max_size=30)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Pairs as two arrays."""
    return u64(*(a for a, _ in pairs)), u64(*(b for _, b in pairs))


def flat(iov: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    """Every address under an iovec array, in order."""
    return [address for base, size in iov.tolist() for address in range(base, base + size)]


@given(SIZES, PAIRS, st.booleans())
def test_iov_addresses_every_byte_in_order(sizes: list[int], pairs: list[tuple[int, int]], touching: bool) -> None:
    gap = 0 if touching else 1000
    bases = [5000 + sum(sizes[:n]) + n * gap for n in range(len(sizes))]
    memory = Memory([Buffer(base, size) for base, size in zip(bases, sizes, strict=True)])
    address_of = [base + at for base, size in zip(bases, sizes, strict=True) for at in range(size)]
    pairs = [(a, n) for a, n in pairs if a + n <= memory.bytes]
    offsets, lengths = columns(pairs)
    assert memory.contains(offsets, lengths)
    iov = memory.iov(offsets, lengths)
    assert flat(iov) == [address for a, n in pairs for address in address_of[a : a + n]]
    assert (iov[:-1, 0] + iov[:-1, 1] != iov[1:, 0]).all(), "touching iovecs are merged"


@pytest.mark.parametrize("bad", [(101, 0), (100, 1), (0, 101), (2**64 - 1, 2), (2**64 - 1, 2**64 - 1), (1, 2**64 - 1)])
def test_memory_knows_what_leaves_it(bad: tuple[int, int]) -> None:
    memory = Memory([Buffer(4096, 60), Buffer(8192, 40)])
    assert memory.contains(u64(0, 99, 100), u64(100, 1, 0))
    assert not memory.contains(u64(0, bad[0]), u64(1, bad[1]))


@pytest.mark.parametrize("buffers", [[], [Buffer(0, 5)], [Buffer(5, 0)]])
def test_bad_buffers_are_refused(buffers: list[Buffer]) -> None:
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        Memory(buffers)


@pytest.mark.parametrize("bad", [[-1], [0.5], [[1]]])
def test_bad_offsets_are_refused(bad: object) -> None:
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        as_offsets(bad)  # type: ignore[arg-type]


def test_offsets_are_a_copy() -> None:
    mine = u64(1, 2)
    copy = as_offsets(mine)
    mine[0] = 9
    assert copy.tolist() == [1, 2]


@given(PAIRS, PAIRS)
def test_an_extent_holds_what_it_was_made_of_and_no_more(
    granted: list[tuple[int, int]], written: list[tuple[int, int]]
) -> None:
    inside: set[int] = set()
    kept = []
    for a, n in granted:
        if inside.isdisjoint(range(a, a + n)):
            inside |= set(range(a, a + n))
            kept.append((a, n))
    extent = extent_of(*columns(kept))
    assert extent.bytes == len(inside)
    for a, n in written:
        if n:
            assert extent.contains(*columns([(a, n)])) == inside.issuperset(range(a, a + n))
    some = [(a, n) for a, n in written if n]
    assert extent.contains(*columns(some)) == all(inside.issuperset(range(a, a + n)) for a, n in some)


def test_overlapping_grants_and_overflowing_writes_are_refused() -> None:
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        extent_of(u64(10, 0), u64(1, 11))
    extent = extent_of(u64(10), u64(10))
    assert not extent.contains(u64(15), u64(2**64 - 10))
    assert not extent.contains(u64(2**64 - 1), u64(1))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.data())
def test_a_cursor_shows_every_byte_once(sizes: list[int], data: st.DataObject) -> None:
    iov = np.array([[1000 * n, size] for n, size in enumerate(sizes)], np.uint64)
    cursor, seen = IovCursor(iov), []
    while cursor.left:
        most = data.draw(st.integers(1, 120))
        shown = cursor.window(most)
        assert shown == int(cursor.shown[:, 1].sum()) == min(most, cursor.left)
        taken = data.draw(st.integers(1, shown))
        seen += flat(cursor.shown)[:taken]
        cursor.advance(taken)
    assert seen == flat(iov)
    assert cursor.window(10) == 0


def test_a_window_holds_what_the_kernel_takes() -> None:
    iov = np.stack((np.arange(3000) * 10, np.full(3000, 4)), axis=1).astype(np.uint64)
    cursor = IovCursor(iov)
    assert cursor.window(1 << 30) == 4 * IOV_MAX == 4 * cursor.count
    fork = cursor.fork()
    fork.seek(4 * 2999 + 1)
    assert (fork.window(99), fork.run_address, fork.first_bytes) == (3, 29991, 3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 64, 512, 4096, 70_000]), st.integers(1, 60), st.integers(0, 63), st.data())
def test_a_checksum_is_that_of_the_bytes_in_order(page: int, pages: int, shift: int, data: st.DataObject) -> None:
    pool = np.random.default_rng(pages).integers(0, 256, page * pages + 64, dtype=np.uint8)
    order = np.random.default_rng(page).permutation(pages)
    offsets = (order * page + shift).astype(np.uint64)
    lengths = np.full(pages, page, np.uint64)
    if data.draw(st.booleans()):
        lengths[-1] = np.uint64(max(1, page - 1))  # off the grid
    memory = Memory([Buffer(int(pool.ctypes.data), pool.size)])
    hasher = ChunkHasher(memory.iov(offsets, lengths))
    total = int(lengths.sum())
    for cut in sorted(data.draw(st.lists(st.integers(0, total), max_size=4))):
        hasher.update_to(cut)
    hasher.update_to(total)
    whole = b"".join(pool[a : a + n].tobytes() for a, n in zip(offsets.tolist(), lengths.tolist(), strict=True))
    assert hasher.value() == xxhash.xxh3_64_intdigest(whole)


@pytest.mark.parametrize("run", [1, 3])
@pytest.mark.parametrize("page", [1000, 4096, 20_000])
def test_a_checksum_grows_by_steps_that_do_not_fit_its_pages(page: int, run: int) -> None:
    pool = np.random.default_rng(page).integers(0, 256, 300 * page, dtype=np.uint8)
    starts = np.random.default_rng(run).permutation(300 // run).astype(np.uint64) * np.uint64(run * page)
    iov = Memory([Buffer(int(pool.ctypes.data), pool.size)]).iov(starts, np.full(starts.size, run * page, np.uint64))
    hasher = ChunkHasher(iov)
    for position in range(0, pool.size, 77_777):
        hasher.update_to(position)
    hasher.update_to(pool.size)
    assert hasher.value() == xxhash.xxh3_64_intdigest(pool.reshape(-1, run * page)[starts // np.uint64(run * page)])


def test_the_wire_gives_back_what_it_got() -> None:
    for message in (
        Knock(bytes(range(16)), 3),
        Welcome(True, 4, 70_000),
        Frame(FrameKind.OPEN, 2**63, 2**50, 2**32 - 1, 2**63 - 1, 2**31),
        Reply(ReplyKind.REFUSED, 5, 0, ErrorReason.OUT_OF_GRANT),
        Reply(ReplyKind.LANDED, 5, 2**40),
    ):
        assert type(message).unpack(message.pack()) == message  # type: ignore[attr-defined]


def test_every_reason_fits_a_reply() -> None:
    for reason in ErrorReason:
        assert Reply.unpack(Reply(ReplyKind.REFUSED, 1, 0, reason).pack()).reason is reason


@pytest.mark.parametrize("kind", [Knock, Welcome, Frame, Reply])
def test_noise_is_a_protocol_violation(kind: type) -> None:
    size = {Knock: 24, Welcome: 12, Frame: 40, Reply: 56}[kind]
    with pytest.raises(TandemError, match="PROTOCOL_VIOLATION"):
        kind.unpack(b"\xee" * size)


@pytest.mark.parametrize(
    ("ours", "theirs", "identity", "chosen"),
    [
        (("cma", "tcp"), ["tcp", "cma"], "here", "cma"),
        (("tcp", "cma"), ["cma", "tcp"], "here", "tcp"),
        (("cma", "tcp"), ["cma", "tcp"], "there", "tcp"),
        (("cma", "tcp"), ["tcp"], "here", "tcp"),
        (("cma",), ["cma", "tcp"], "there", None),
        (("cma",), ["cma"], "", None),
        (("tcp",), [], "here", None),
    ],
)
def test_choice(ours: tuple[str, ...], theirs: list[str], identity: str, chosen: str | None) -> None:
    offers = [ProviderOffer(name=name, host_identity=("here" if identity else "") * (name == "cma")) for name in theirs]
    if chosen is None:
        with pytest.raises(TandemError, match="NOT_SUPPORTED"):
            choose(ours, offers, identity)
    else:
        assert choose(ours, offers, identity).offer.name == chosen
