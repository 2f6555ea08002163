"""What a worker tells operators: itself, its engine, and what the engine's ranks have measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from tandem.core.ids import PAIR, Role
from tandem.core.room.receiver import TERMINAL as RECEIVER_TERMINAL
from tandem.core.room.receiver import ReceiverState
from tandem.core.room.sender import TERMINAL as SENDER_TERMINAL
from tandem.core.room.sender import SenderState
from tandem.engine.measures import Histogram, PeerKey, PeerMeasures, RankReport
from tandem.engine.port import EngineStatus, Measured
from tandem.rpc.metrics import Distribution, Family, Kind, Metrics, Reading, Sample
from tandem.rpc.process_metrics import add_process_metrics

COUNTER, GAUGE, HISTOGRAM = Kind

SESSIONS: Final = Family("tandem_worker_sessions", GAUGE, "Sessions with gateways that are open.")
SUBMITS: Final = Family("tandem_worker_submits", COUNTER, "Rooms taken from gateways.")
OPEN: Final = Family("tandem_worker_open_rooms", GAUGE, "Rooms taken from gateways that have not ended.")
DRAINING: Final = Family("tandem_worker_draining", GAUGE, "1 while the worker should get no new rooms, else 0.")
STUCK: Final = Family(
    "tandem_worker_stuck", GAUGE, "1 while the worker has left the cluster because its engine does not answer, else 0."
)
SERVING: Final = Family("tandem_worker_serving", GAUGE, "1 once the engine runs and the worker has registered, else 0.")
WORKER: Final = (SESSIONS, SUBMITS, OPEN, DRAINING, STUCK, SERVING)

ANSWERS: Final = Family(
    "tandem_engine_up",
    GAUGE,
    "1 if the worker serves and every rank answered this scrape, else 0: then what is of its engine is absent.",
)
SEQUENCES: Final = Family("tandem_engine_sequences", GAUGE, "Sequences in the engine: running or waiting.", ("state",))
POOL: Final = Family(
    "tandem_pool_entries",
    GAUGE,
    "Entries of a pool (the pages of `kv`, the rows of `metadata`): free, evictable (a cached prefix that nobody uses)"
    " or used. Of the scarcest rank.",
    ("pool", "state"),
)
GRANTED: Final = Family(
    "tandem_pool_granted_entries", GAUGE, "Entries of a pool that are under an open grant; among the used.", ("pool",)
)
ROOMS: Final = Family("tandem_rooms", GAUGE, "Open rooms by the state of their machine, over all ranks.", ("state",))
OVERDUE: Final = Family("tandem_rooms_overdue", GAUGE, "Open rooms past their deadline, over all ranks.")
OLDEST: Final = Family("tandem_room_oldest_seconds", GAUGE, "Age of the oldest open room; 0 without one.")
SUCCEEDED: Final = Family("tandem_rooms_succeeded", COUNTER, "Rooms whose KV has landed, over all ranks.")
FAILED: Final = Family("tandem_rooms_failed", COUNTER, "Rooms that failed, over all ranks, by reason.", ("reason",))
QUEUE: Final = Family(
    "tandem_room_queue_seconds",
    HISTOGRAM,
    "From a room's ticket until the engine begins: on prefill its first chunk is computed, on decode its pages are"
    " reserved.",
)
ROOM: Final = Family(
    "tandem_room_transfer_seconds",
    HISTOGRAM,
    "From there until the room ended well: on prefill decode has verified all of it, on decode it is the engine's.",
)
BYTES: Final = Family(
    "tandem_kv_bytes",
    COUNTER,
    "Bytes moved (prefill: sent; decode: landed), metadata rows included, of rooms that failed later too.",
    ("peer", "provider"),
)
CHUNKS: Final = Family("tandem_kv_chunks", COUNTER, "Chunks moved.", ("peer", "provider"))
CHUNK: Final = Family(
    "tandem_kv_chunk_seconds",
    HISTOGRAM,
    "From the write of a chunk until decode has it. Bytes over the sum of it are the speed of one transfer.",
    ("peer", "provider"),
)
LINKS: Final = Family("tandem_kv_links", GAUGE, "KvLinks that are up.", ("peer", "provider"))
OPENED: Final = Family("tandem_kv_links_opened", COUNTER, "KvLinks that came up.", ("peer", "provider"))
ABORTS: Final = Family("tandem_kv_aborts", COUNTER, "Aborts of rooms on KvLinks: sent or received.", ("direction",))
CHECKSUMS: Final = Family(
    "tandem_kv_checksum_failures", COUNTER, "Rooms that failed because pages changed on their way."
)
STALE: Final = Family("tandem_kv_stale_messages", COUNTER, "Messages refused because they were late, stale or unknown.")
REVOKED: Final = Family(
    "tandem_kv_grants_revoked",
    COUNTER,
    "Grants taken back before all that they were for had landed.",
    ("provider",),
)
PREFIX: Final = Family(
    "tandem_kv_prefix_bytes",
    COUNTER,
    "Bytes of KV that were not moved since decode held that beginning of the prompt, of rooms whose rest has landed.",
)
FENCE: Final = Family(
    "tandem_kv_fence_seconds", HISTOGRAM, "From the failure of a room until nothing of it moves any more."
)
REPLACED: Final = Family(
    "tandem_rdma_queue_pairs_replaced", COUNTER, "Provider verbs: queue pairs that broke or were fenced, and made anew."
)
UNIFIED: Final = Family(
    "tandem_unified_rooms", COUNTER, "Rooms that a unified worker has ended, well or badly.", ("outcome",)
)
LAG: Final = Family(
    "tandem_rank_event_loop_lag_seconds",
    HISTOGRAM,
    "How late a rank's event loop runs what is due, looked at every 0.1 s.",
    ("rank",),
)
CPU: Final = Family("tandem_rank_cpu_seconds", COUNTER, "Processor time that the rank's process has used.", ("rank",))
MEMORY: Final = Family("tandem_rank_resident_memory_bytes", GAUGE, "Resident memory of the rank's process.", ("rank",))
FDS: Final = Family("tandem_rank_open_fds", GAUGE, "File descriptors that the rank's process has open.", ("rank",))
ALL: Final = (ANSWERS, SEQUENCES, POOL, LAG, CPU, MEMORY, FDS)
"""Of an engine in any role."""
PAIRED: Final = (
    *(GRANTED, ROOMS, OVERDUE, OLDEST, SUCCEEDED, FAILED, QUEUE, ROOM),
    *(BYTES, CHUNKS, LINKS, OPENED, ABORTS, STALE, FENCE, REPLACED),
)
"""Of an engine that moves KV."""
OF_ROLE: Final = {
    Role.PREFILL: (*PAIRED, CHUNK),
    Role.DECODE: (*PAIRED, CHECKSUMS, REVOKED, PREFIX),
    Role.UNIFIED: (UNIFIED,),
}
"""And in some roles only."""
STATES: Final = {
    Role.PREFILL: tuple(state.value for state in SenderState if state not in SENDER_TERMINAL),
    Role.DECODE: tuple(state.value for state in ReceiverState if state not in RECEIVER_TERMINAL),
}
"""In which a room can be open."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the worker knows without asking its engine."""

    sessions: int = 0
    submits: int = 0
    open_rooms: int = 0
    draining: bool = False
    stuck: bool = False
    serving: bool = False


class WorkerMetrics:
    """A worker's metrics. `told` is what the next scrape shows."""

    def __init__(self, role: Role) -> None:
        self.metrics = metrics = Metrics()
        self._facts = WorkerFacts()
        self._measured: Measured | None = None
        self.lag = add_process_metrics(metrics, role.value)
        self.registrations = metrics.counter(
            "tandem_worker_registrations", "Registrations at bootstrap: the first, and one after each lost lease."
        )
        self.lease_losses = metrics.counter(
            "tandem_worker_lease_losses", "Heartbeats to which bootstrap said that the worker is not registered."
        )
        self.missed_heartbeats = metrics.counter(
            "tandem_worker_heartbeats_missed", "Heartbeats that bootstrap did not answer in time."
        )
        metrics.read(WORKER, lambda: _of_worker(self._facts))
        self._engine = self._read_engine(role)

    def become(self, role: Role) -> None:
        """Shows what there is of another role."""
        self._measured = None
        self.metrics.unread(self._engine)
        self._engine = self._read_engine(role)

    def _read_engine(self, role: Role) -> Reading:
        return self.metrics.read((*ALL, *OF_ROLE[role]), lambda: of_engine(role, self._measured))

    def told(self, facts: WorkerFacts, measured: Measured | None) -> bytes:
        """The text of a scrape. measured: None if the engine does not answer."""
        self._facts, self._measured = facts, measured
        return self.metrics.render()


def _of_worker(facts: WorkerFacts) -> Iterator[Sample]:
    values = (facts.sessions, facts.submits, facts.open_rooms, facts.draining, facts.stuck, facts.serving)
    for family, value in zip(WORKER, values, strict=True):
        yield Sample(family, int(value))


def of_engine(role: Role, measured: Measured | None) -> Iterator[Sample]:
    """Everything of an engine; None: it does not answer."""
    yield Sample(ANSWERS, int(measured is not None))
    if measured is None:
        return
    yield from _of_status(measured.status)
    if role in PAIR:
        yield from _of_transfers(role, measured.status)
        yield from _of_rooms(role, measured.ranks)
        yield from _of_links(role, measured.ranks)
    else:
        yield Sample(UNIFIED, measured.status.rooms_succeeded, ("succeeded",))
        yield Sample(UNIFIED, measured.status.rooms_failed, ("failed",))
    for report in measured.ranks:
        yield from _of_rank(report)


def _of_status(status: EngineStatus) -> Iterator[Sample]:
    yield Sample(SEQUENCES, status.running, ("running",))
    yield Sample(SEQUENCES, status.waiting, ("waiting",))
    for pool in status.pools:
        yield Sample(POOL, pool.free, (pool.name, "free"))
        yield Sample(POOL, pool.evictable, (pool.name, "evictable"))
        yield Sample(POOL, pool.total - pool.free - pool.evictable, (pool.name, "used"))


def _of_transfers(role: Role, status: EngineStatus) -> Iterator[Sample]:
    for pool in status.pools:
        yield Sample(GRANTED, pool.granted, (pool.name,))
    yield Sample(STALE, status.stale_messages)
    if role is Role.DECODE:
        yield Sample(CHECKSUMS, status.checksum_failures)


def _of_rooms(role: Role, ranks: Sequence[RankReport]) -> Iterator[Sample]:
    states = _added(report.rooms for report in ranks)
    for state in STATES[role]:
        yield Sample(ROOMS, states[state], (state,))
    yield Sample(OVERDUE, sum(report.rooms_overdue for report in ranks))
    yield Sample(OLDEST, max((report.oldest_room_s for report in ranks), default=0.0))
    yield Sample(SUCCEEDED, sum(report.measures.rooms_succeeded for report in ranks))
    for reason, count in _added(report.measures.rooms_failed for report in ranks).items():
        yield Sample(FAILED, count, (reason,))
    yield from _distribution(QUEUE, [report.measures.queue_s for report in ranks])
    yield from _distribution(ROOM, [report.measures.room_s for report in ranks])


def _of_links(role: Role, ranks: Sequence[RankReport]) -> Iterator[Sample]:
    for key, found in _peers(ranks).items():
        yield Sample(BYTES, found.bytes, key)
        yield Sample(CHUNKS, found.chunks, key)
        yield Sample(LINKS, found.links, key)
        yield Sample(OPENED, found.links_opened, key)
        if role is Role.PREFILL:
            yield from _distribution(CHUNK, [found.chunk_s], key)
    yield Sample(ABORTS, sum(report.measures.aborts_sent for report in ranks), ("sent",))
    yield Sample(ABORTS, sum(report.measures.aborts_received for report in ranks), ("received",))
    if role is Role.DECODE:
        for provider, count in _added(report.measures.revoked for report in ranks).items():
            yield Sample(REVOKED, count, (provider,))
        yield Sample(PREFIX, sum(report.measures.prefix_bytes for report in ranks))
    yield from _distribution(FENCE, [report.measures.fence_s for report in ranks])
    yield Sample(REPLACED, sum(report.queue_pairs_replaced for report in ranks))


def _of_rank(report: RankReport) -> Iterator[Sample]:
    name = (str(report.rank),)
    yield from _distribution(LAG, [report.measures.lag_s], name)
    yield Sample(CPU, report.process.cpu_s, name)
    yield Sample(MEMORY, report.process.resident_bytes, name)
    yield Sample(FDS, report.process.open_fds, name)


def _added(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _peers(ranks: Sequence[RankReport]) -> dict[PeerKey, PeerMeasures]:
    total: dict[PeerKey, PeerMeasures] = {}
    for report in ranks:
        for key, found in report.measures.peers.items():
            total[key] = total[key].plus(found) if key in total else found
    return total


def _distribution(family: Family, parts: Sequence[Histogram], labels: tuple[str, ...] = ()) -> Iterator[Sample]:
    """All parts together; nothing for none."""
    if parts:
        total = reduce(Histogram.plus, parts)
        yield Sample(family, Distribution(total.bounds, total.counts, total.sum), labels)
