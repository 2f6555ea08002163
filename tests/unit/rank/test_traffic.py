"""Bytes by peer and provider: from what each rank counts to what the worker says of itself."""

from __future__ import annotations

from tandem.engine.measures import MAX_PEERS, OTHER_PEERS, PeerKey
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.status import Gauges, from_proto, merge, rank_status, to_proto


def counters(**moved: int) -> RankCounters:
    """A rank that has received bytes over tcp, by peer."""
    counted = RankCounters()
    for peer, size in moved.items():
        counted.measures.peer(peer, "tcp").landed(size)
    return counted


def test_what_ranks_count_adds_up_and_survives_the_wire_in_order() -> None:
    ranks = [rank_status(Gauges(), one) for one in (counters(p1=5, p0=1), counters(p1=7, p2=9))]
    assert all(from_proto(to_proto(one)) == one for one in ranks)
    worker = merge(ranks)
    assert worker.traffic == {("p0", "tcp"): 1, ("p1", "tcp"): 12, ("p2", "tcp"): 9}
    assert [(one.peer, one.bytes) for one in to_proto(worker).traffic] == [("p0", 1), ("p1", 12), ("p2", 9)]


def test_one_peer_has_an_entry_per_provider() -> None:
    counted = counters(p0=3)
    counted.measures.peer("p0", "cma").landed(4)
    assert rank_status(Gauges(), counted).traffic == {("p0", "tcp"): 3, ("p0", "cma"): 4}


def test_however_many_peers_ranks_tell_apart_the_worker_tells_512_and_loses_no_byte() -> None:
    ranks = [counters(**{f"{rank}-{n}": 1 for n in range(MAX_PEERS + 9)}) for rank in ("a", "b")]
    traffic = merge([rank_status(Gauges(), one) for one in ranks]).traffic
    other: PeerKey = (OTHER_PEERS, "tcp")
    assert len(traffic) == MAX_PEERS + 1
    assert sum(traffic.values()) == 2 * (MAX_PEERS + 9)
    assert traffic[other] == 2 * (MAX_PEERS + 9) - MAX_PEERS
