"""Offers as messages: cut, put together again, and whatever does not fit together is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason
from tandem.core.ids import GrantId, RoomId
from tandem.core.pages import MAX_PAGES, PageRuns
from tandem.core.room.events import Why
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.offers import POOL_BYTES, Offer, OfferCollector, OfferParts
from tandem.rpc.continued import MAX_PARTS, MAX_VARINT_BYTES, PART_BYTES
from tandem.rpc.options import MAX_MESSAGE_BYTES
from tandem.v1 import kv_link_pb2

NONCE = b"0123456789abcdef"
KV, STATE = 0, 2
U32 = st.integers(0, 2**32 - 1) | st.integers(0, 300)
RUNS = st.lists(st.tuples(U32, U32), min_size=1, max_size=60)


def _runs(pairs: Sequence[tuple[int, int]]) -> PageRuns:
    return PageRuns(np.array([a for a, _ in pairs], np.uint32), np.array([b for _, b in pairs], np.uint32))


def _offer(runs: dict[int, PageRuns], room: int = 7) -> Offer:
    return Offer(RoomId(room), GrantId(9), NONCE, runs, 3, 16)


def _scattered(count: int) -> PageRuns:
    return PageRuns(np.arange(count, dtype=np.uint32) * 2, np.ones(count, np.uint32))


class Prefill:
    """A collector and what it refused."""

    def __init__(self, timeout_ms: int = 60_000) -> None:
        self.counters = RankCounters()
        self.refused: list[tuple[int, int, Why]] = []
        self.told = asyncio.Event()
        self.offers = OfferCollector(self.counters, timeout_ms, self._refuse)

    def _refuse(self, room: RoomId, grant_id: GrantId, why: Why) -> None:
        self.refused.append((room, grant_id, why))
        self.told.set()

    def add(self, parts: Sequence[kv_link_pb2.OfferPages]) -> list[Offer]:
        """Every offer that the parts make, as they come over a wire."""
        copies = [kv_link_pb2.OfferPages.FromString(part.SerializeToString()) for part in parts]
        return [offer for part in copies if (offer := self.offers.add(part)) is not None]


def _same(one: Offer, other: Offer) -> bool:
    fixed = [
        (offer.room, offer.grant_id, offer.nonce, offer.metadata_row, offer.decode_prefix_len, sorted(offer.runs))
        for offer in (one, other)
    ]
    return fixed[0] == fixed[1] and all(
        np.array_equal(one.runs[pool].starts, other.runs[pool].starts)
        and np.array_equal(one.runs[pool].lengths, other.runs[pool].lengths)
        for pool in one.runs
    )


@given(st.dictionaries(st.sampled_from([0, 2, 3, 9]), RUNS), st.integers(0, 80))
def test_whatever_is_cut_is_the_same_when_joined(pools: dict[int, list[tuple[int, int]]], spare: int) -> None:
    offer = _offer({pool: _runs(pairs) for pool, pairs in pools.items()})
    part_bytes = POOL_BYTES * len(pools) + 2 * MAX_VARINT_BYTES + spare

    async def join() -> tuple[list[kv_link_pb2.OfferPages], list[Offer]]:
        parts = list(OfferParts(offer, part_bytes))
        prefill = Prefill()
        wholes = prefill.add(parts) if len(parts) <= MAX_PARTS else [offer]
        prefill.offers.close()
        return parts, wholes

    parts, wholes = asyncio.run(join())
    assert len(parts) == len(OfferParts(offer, part_bytes))
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(sum(entries.ByteSize() for entries in part.entries) <= part_bytes for part in parts)
    assert len(wholes) == 1
    assert _same(wholes[0], offer)


def test_the_longest_offer_makes_messages_that_fit_and_no_more_than_are_allowed() -> None:
    widest = PageRuns(np.full(MAX_PAGES, 2**32 - 1, np.uint32), np.full(MAX_PAGES, 2**32 - 1, np.uint32))
    parts = OfferParts(_offer({KV: widest}))
    assert len(parts) <= MAX_PARTS
    first = next(iter(parts))
    assert PART_BYTES - POOL_BYTES - 10 < len(first.entries[0].starts) * 10 <= PART_BYTES
    request = kv_link_pb2.LinkRequest(link_epoch=2**63 - 1, offer=first)
    assert request.ByteSize() <= MAX_MESSAGE_BYTES


def test_what_fits_one_message_is_one() -> None:
    (part,) = OfferParts(_offer({KV: _scattered(200_000), STATE: _scattered(3)}))
    assert (part.part, part.more) == (0, False)
    assert [entries.pool for entries in part.entries] == [KV, STATE]


async def test_an_offer_of_a_metadata_row_alone_is_one_message() -> None:
    (part,) = OfferParts(_offer({}))
    assert [offer.runs for offer in Prefill().add([part])] == [{}]


def _parts() -> list[kv_link_pb2.OfferPages]:
    """An offer in three parts."""
    parts = list(OfferParts(_offer({KV: _scattered(40), STATE: _scattered(20)}), part_bytes=2 * POOL_BYTES + 45))
    assert len(parts) == 3
    return parts


def _spoil(number: int, **fields: object) -> Callable[[list[kv_link_pb2.OfferPages]], None]:
    def spoil(parts: list[kv_link_pb2.OfferPages]) -> None:
        for name, value in fields.items():
            setattr(parts[number], name, value)

    return spoil


def _second_first(parts: list[kv_link_pb2.OfferPages]) -> None:
    parts[1], parts[2] = parts[2], parts[1]


def _uneven(parts: list[kv_link_pb2.OfferPages]) -> None:
    parts[1].entries[0].lengths.append(1)


def _twice(parts: list[kv_link_pb2.OfferPages]) -> None:
    parts[1].entries.append(parts[1].entries[0])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_spoil(1, nonce=b"x" * 16), "nonces"),
        (_spoil(1, nonce=b""), "nonces"),
        (_spoil(2, metadata_row=4), "differ"),
        (_spoil(2, decode_prefix_len=0), "differ"),
        (_spoil(1, part=2), "part 2 after 1"),
        (_spoil(2, part=1), "part 1 after 2"),
        (_second_first, "part 2 after 1"),
        (_uneven, "lengths"),
        (_twice, "twice"),
    ],
)
async def test_parts_that_do_not_fit_together_are_refused_once(
    spoil: Callable[[list[kv_link_pb2.OfferPages]], None], says: str
) -> None:
    parts = _parts()
    spoil(parts)
    prefill = Prefill()
    assert prefill.add(parts) == []
    ((room, grant_id, why),) = prefill.refused
    assert (room, grant_id, why.reason) == (7, 9, ErrorReason.PROTOCOL_VIOLATION)
    assert says in why.message
    assert len(prefill.add(_parts())) == 1, "the next offer is none the worse for it"


@pytest.mark.parametrize(("field", "value"), [("room", 8), ("grant_id", 10)])
async def test_a_part_of_another_offer_is_stale_and_harms_nobody(field: str, value: int) -> None:
    first, stranger, *rest = _parts()
    right = kv_link_pb2.OfferPages()
    right.CopyFrom(stranger)
    setattr(stranger, field, value)
    prefill = Prefill()
    (offer,) = prefill.add([first, stranger, right, *rest])
    assert offer.runs[KV].starts.size == 40
    assert (prefill.counters.stale_messages, prefill.refused) == (1, [])


async def test_another_offer_between_the_parts_ends_the_unfinished_one() -> None:
    first, *rest = _parts()
    (other,) = OfferParts(_offer({KV: _scattered(1)}, room=8))
    prefill = Prefill()
    assert [offer.room for offer in prefill.add([first, other, *rest])] == [8]
    assert [(room, why.reason) for room, _, why in prefill.refused] == [(7, ErrorReason.PROTOCOL_VIOLATION)]
    assert prefill.counters.stale_messages == len(rest)


async def test_parts_that_never_end_are_refused_in_time() -> None:
    prefill = Prefill(timeout_ms=20)
    assert prefill.add(_parts()[:2]) == []
    await asyncio.wait_for(prefill.told.wait(), 10)
    assert [(room, why.reason) for room, _, why in prefill.refused] == [(7, ErrorReason.PROTOCOL_VIOLATION)]


async def test_an_aborted_offer_is_forgotten() -> None:
    parts, prefill = _parts(), Prefill()
    prefill.add(parts[:2])
    prefill.offers.drop(8)
    prefill.offers.drop(7)
    assert prefill.add(parts[2:]) == []
    assert (prefill.counters.stale_messages, prefill.refused) == (1, [])


async def test_more_parts_or_runs_than_are_allowed_are_refused() -> None:
    many = [
        kv_link_pb2.OfferPages(room=7, grant_id=9, nonce=NONCE, part=number, more=True)
        for number in range(MAX_PARTS + 1)
    ]
    prefill = Prefill()
    assert prefill.add(many[:-1]) == []
    assert prefill.refused == []
    prefill.add(many[-1:])
    assert f"of at most {MAX_PARTS}" in prefill.refused[0][2].message

    wide = kv_link_pb2.PoolEntries(pool=KV, starts=[0] * 100_000, lengths=[1] * 100_000)
    prefill = Prefill()
    for number in range(MAX_PAGES // 100_000 + 1):
        part = kv_link_pb2.OfferPages(room=7, grant_id=9, nonce=NONCE, entries=[wide], part=number, more=True)
        prefill.add([part])
    assert f"more than {MAX_PAGES} runs" in prefill.refused[0][2].message
