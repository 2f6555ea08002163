"""The engine port: what a worker needs of an engine, whatever the engine is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from tandem.core.errors import TandemError
from tandem.core.ids import Nonce, RankId, RequestId, Role, RoomId, WorkerLife
from tandem.core.kv_log import KvLog
from tandem.core.layout import KvLayout
from tandem.core.room.events import Why
from tandem.core.room.timeline import RoomSpan
from tandem.engine.measures import PeerKey, RankReport

NO_REQUEST: Final = RequestId("")


@dataclass(frozen=True, slots=True)
class RankInfo:
    """One rank, as it is registered."""

    rank: RankId
    kv_link_address: str
    """host:port; empty on decode and unified ranks."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine is, known once it has started."""

    model: str
    """Name under which it is served."""
    layout: KvLayout
    ranks: tuple[RankInfo, ...]
    context_tokens: int
    max_running: int
    total_pages: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; None = the engine's default. Ranges as in tandem/v1/session.proto."""

    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    min_new_tokens: int = 0
    json_schema: str = ""
    regex: str = ""
    ebnf: str = ""
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits."""
    structural_tag: str = ""
    reasoning_first: bool = False
    """The grammar leaves the model's reasoning free."""


@dataclass(frozen=True, slots=True)
class LogprobOptions:
    """Which log probabilities to return."""

    top: int = 0
    prompt: bool = False
    prompt_start: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave for one room to use a rank: who may talk about it, and until when."""

    room: RoomId
    nonce: Nonce
    peer: WorkerLife
    peer_address: str
    """KvLink address of the peer's rank; empty on prefill."""
    deadline: float
    """Monotonic seconds."""
    prompt_tokens: int
    traceparent: str = ""
    request_id: RequestId = NO_REQUEST


@dataclass(frozen=True, slots=True)
class RoomTrace:
    """What one rank noted of a room whose trace is sampled."""

    room: RoomId
    rank: RankId
    traceparent: str
    """As in the ticket: the span that these belong under."""
    opened_unix_ns: int
    """Nanoseconds since 1970, by the rank's clock; the spans count from there."""
    spans: tuple[RoomSpan, ...]
    """In order of start."""
    dropped: int = 0
    """Spans that were not kept."""


@dataclass(frozen=True, slots=True)
class Job:
    """One leg of one room."""

    request_id: RequestId
    room: RoomId
    nonce: Nonce
    peer: WorkerLife
    """Of an empty name on a unified worker, which has none."""
    peer_addresses: dict[RankId, str]
    """KvLink address of the peer's rank for each of ours; empty but on decode."""
    deadline: float
    """Monotonic seconds."""
    input_ids: list[int]
    sampling: Sampling
    logprobs: LogprobOptions | None = None
    dp_rank: int = 0
    peer_dp_rank: int = 0
    traceparent: str = ""
    early_first_token: bool = False
    """Prefill: say the first token as soon as it is computed. Others say it in any case."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability (natural) of one token and of its likeliest alternatives."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class FinishKind(Enum):
    """How a leg ended."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"
    HANDED_OVER = "handed_over"
    """Prefill only: the KV has landed."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End of a leg."""

    kind: FinishKind
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    matched_text: str = ""
    matched_token_id: int | None = None
    why: Why | None = None
    """Set if kind is FAILED."""


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one room."""

    room: RoomId
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


RoomTraceSink = Callable[[RoomTrace], None]
"""Takes what a rank noted of a room that has ended, on the event loop; must not block."""

Sink = Callable[[Delta], None]
"""Takes news of a room, on the event loop; must not block. The last one has `finish`."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Entries of one pool. When idle: free + evictable == total and granted == 0."""

    name: str
    total: int
    free: int
    evictable: int
    granted: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Gauges and counters of an engine over all its ranks; counters count from its start."""

    running: int = 0
    waiting: int = 0
    open_rooms: int = 0
    pools: tuple[PoolStatus, ...] = ()
    rooms_succeeded: int = 0
    rooms_failed: int = 0
    kv_bytes: int = 0
    metadata_bytes: int = 0
    kv_chunks: int = 0
    stale_messages: int = 0
    checksum_failures: int = 0
    links: dict[str, str] = field(default_factory=dict)
    """Peer worker id to provider name, of links that are up."""
    traffic: dict[PeerKey, int] = field(default_factory=dict)
    """Bytes moved by peer and provider, as PeerTraffic in tandem/v1/session.proto has them."""
    moving_us: dict[PeerKey, int] = field(default_factory=dict)
    """The time that took, as PeerTraffic has it; by the keys of `traffic`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that an engine can be asked about itself, for operators."""

    status: EngineStatus
    ranks: tuple[RankReport, ...]
    """In order of rank."""


@dataclass(frozen=True, slots=True)
class RankRoom:
    """One open room on one rank."""

    room: RoomId
    rank: RankId
    state: str
    """Of its machine, see tandem.core.room."""
    peer: WorkerLife
    granted_pages: int
    bytes_moved: int
    age_ms: int
    left_ms: int
    """Until its deadline; 0 = it is over."""


@dataclass(frozen=True, slots=True)
class OpenRooms:
    """The oldest open rooms of some ranks, the oldest first, and how many there are in all."""

    rooms: tuple[RankRoom, ...] = ()
    total: int = 0


class Engine(Protocol):
    """An engine in one role. Every method runs on the worker's event loop."""

    async def start(self) -> EngineFacts:
        """Loads the model and starts the ranks. Raises TandemError(ENGINE_FAILED) with what went wrong."""

    def on_room_traced(self, sink: RoomTraceSink) -> None:
        """Sets who takes the ranks' traces of rooms, before `start`."""

    @property
    def held_pages(self) -> KvLog:
        """What its prefix cache holds, once it has started; of an engine that does not tell, nothing."""

    def identify(self, life: WorkerLife) -> None:
        """Tells the ranks the worker's name and life, once it is registered; links open only after that."""

    @property
    def roles(self) -> frozenset[Role]:
        """Those that it can take while it runs; its own is one of them."""

    async def switch(self, role: Role) -> EngineFacts:
        """Takes another of its roles; every room has ended, and nobody submits meanwhile.

        Raises TandemError: ENGINE_FAILED if it can't go on at all, any other if it stays as it was.
        """

    async def submit(self, job: Job, sink: Sink) -> None:
        """Opens the room's ticket on its ranks, if it has a peer, then hands the prompt to the engine.

        Returns once that is done; news come through `sink`, the last with a Finish, in every case: if submit raises
        TandemError, no Finish follows.
        """

    async def abort(self, room: RoomId, why: Why) -> bool:
        """Ends a room early; its Finish comes through its sink. False if it is not known or has ended."""

    def peer_joined(self, life: WorkerLife, addresses: dict[RankId, str]) -> None:
        """Decode: a prefill worker is there; ranks may dial it before it is needed."""

    def peer_gone(self, life: WorkerLife) -> None:
        """A peer's life is over: its links close, its rooms fail with PEER_LOST."""

    async def status(self) -> EngineStatus:
        """The state of this moment. Raises TandemError if a rank does not say."""

    async def measured(self) -> Measured:
        """The same, and what its ranks have measured."""

    async def rooms(self, limit: int) -> OpenRooms:
        """The open rooms of every rank, at most `limit` of each."""

    def rank_pids(self) -> Sequence[int]:
        """Processes of its ranks; empty if they are in this one, or have not started."""

    async def wait_failed(self) -> TandemError:
        """Returns when the engine can't go on (a rank died); never in a healthy life."""

    async def close(self) -> None:
        """Ends every room, stops the ranks and frees everything. Idempotent."""
