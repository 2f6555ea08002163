"""A rank's report as the message that the hub collects, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tandem.core.ids import RankId
from tandem.engine.measures import Histogram, PeerMeasures, ProcessUse, RankMeasures, RankReport
from tandem.v1 import rank_pb2


def to_proto(report: RankReport) -> rank_pb2.RankMetrics:
    """A report as its message; the rank's numbers are those of the stream that it goes over."""
    measures = report.measures
    return rank_pb2.RankMetrics(
        rooms=_counts(report.rooms),
        rooms_overdue=report.rooms_overdue,
        oldest_room_ms=round(report.oldest_room_s * 1000),
        rooms_succeeded=measures.rooms_succeeded,
        rooms_failed=_counts(measures.rooms_failed),
        queue=_distribution(measures.queue_s),
        room=_distribution(measures.room_s),
        aborts_sent=measures.aborts_sent,
        aborts_received=measures.aborts_received,
        revoked=_counts(measures.revoked),
        prefix_bytes=measures.prefix_bytes,
        fence=_distribution(measures.fence_s),
        queue_pairs_replaced=report.queue_pairs_replaced,
        peers=[
            rank_pb2.PeerMetrics(
                peer=peer,
                provider=provider,
                links=found.links,
                links_opened=found.links_opened,
                bytes=found.bytes,
                chunks=found.chunks,
                chunk=_distribution(found.chunk_s),
            )
            for (peer, provider), found in measures.peers.items()
        ],
        loop_lag=_distribution(measures.lag_s),
        cpu_ms=round(report.process.cpu_s * 1000),
        resident_bytes=report.process.resident_bytes,
        open_fds=report.process.open_fds,
    )


def from_proto(rank: RankId, message: rank_pb2.RankMetrics) -> RankReport:
    """A message as the report of a rank."""
    return RankReport(
        rank=rank,
        rooms=_counter(message.rooms),
        rooms_overdue=message.rooms_overdue,
        oldest_room_s=message.oldest_room_ms / 1000,
        queue_pairs_replaced=message.queue_pairs_replaced,
        process=ProcessUse(message.cpu_ms / 1000, message.resident_bytes, message.open_fds),
        measures=RankMeasures(
            rooms_succeeded=message.rooms_succeeded,
            rooms_failed=_counter(message.rooms_failed),
            queue_s=_histogram(message.queue),
            room_s=_histogram(message.room),
            aborts_sent=message.aborts_sent,
            aborts_received=message.aborts_received,
            revoked=_counter(message.revoked),
            prefix_bytes=message.prefix_bytes,
            fence_s=_histogram(message.fence),
            lag_s=_histogram(message.loop_lag),
            peers={
                (one.peer, one.provider): PeerMeasures(
                    one.links, one.links_opened, one.bytes, one.chunks, _histogram(one.chunk)
                )
                for one in message.peers
            },
        ),
    )


def _counts(counts: Mapping[str, int]) -> list[rank_pb2.NamedCount]:
    return [rank_pb2.NamedCount(name=name, count=count) for name, count in counts.items()]


def _counter(counts: Iterable[rank_pb2.NamedCount]) -> Counter[str]:
    return Counter({one.name: one.count for one in counts})


def _distribution(histogram: Histogram) -> rank_pb2.Distribution:
    return rank_pb2.Distribution(bounds_s=histogram.bounds, counts=histogram.counts, sum_s=histogram.sum)


def _histogram(message: rank_pb2.Distribution) -> Histogram:
    return Histogram(tuple(message.bounds_s), list(message.counts), message.sum_s)
