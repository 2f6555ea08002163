"""Doubles for unit tests: a tokenizer of one token per character, workers that only note what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import httpx

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import TandemError
from tandem.core.fair_queue import QueueLimits
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.core.policies import PolicyName
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.slots import Slots
from tandem.gateway.admission.tenants import Tenants
from tandem.gateway.admission.waiting_room import WaitingRoom
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.responses_store import KeepLimits, ResponseStore
from tandem.gateway.calls import ChatPrompt, IdsPrompt, Item, Sequence
from tandem.gateway.dashboard.feed import Feed
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.room_runs import Dice
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.gateway.routing.sessions import Leg
from tandem.gateway.siblings.responses import Responses
from tandem.gateway.siblings.scrape import Scrape
from tandem.gateway.text.speech import Parsers
from tandem.gateway.text.tokenizer import PromptTokenizer
from tandem.gateway.web.dashboard_endpoints import Dashboard
from tandem.gateway.web.generation import GenerationLimits, Works
from tandem.gateway.web.paths import HttpParts, build_http
from tandem.gateway.web.prepare import Catalog, Preparer
from tandem.gateway.web.token_endpoints import TokenEndpoints
from tandem.rpc.clock import SystemClock
from tandem.rpc.metrics import Metrics
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import worker

CONTEXT = 100
MODEL = "tiny"


class LetterEncoder:
    """One token per character: its code point, cut to the vocabulary."""

    vocabulary = 1000

    def render(self, prompt: ChatPrompt) -> str:
        """`role:content;` for each message, after the names of the tools, if there are any."""
        tools = "".join(f"[{tool.name}]" for tool in prompt.tools)
        return tools + "".join(f"{message.role}:{message.content};" for message in prompt.messages)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Code points."""
        return [ord(letter) % self.vocabulary for letter in text]

    def token_text(self, token_id: int) -> str:
        """The letter."""
        return chr(token_id)

    def text(self, ids: Iterable[int], skip_special_tokens: bool) -> str:
        """The letters."""
        return "".join(map(chr, ids))


class Letters:
    """tandem.gateway.text.tokenizers.TokenizersOf that has LetterEncoder for every model."""

    def __init__(self) -> None:
        self._tokenizer = PromptTokenizer(LetterEncoder())

    async def of(self, model: str) -> PromptTokenizer:
        """The same for all."""
        return self._tokenizer


class NotingWorker:
    """A Session that sends nothing anywhere; the test plays the worker through `legs`."""

    def __init__(self, worker_id: str, role: Role) -> None:
        self.info: WorkerInfo = replace(worker(worker_id, role, incarnation=1), models=(MODEL,))
        self.submits: list[session_pb2.Submit] = []
        self.legs: dict[int, Leg] = {}
        self.cancelled: dict[int, TandemError] = {}
        self.forgotten: list[int] = []
        self.refuses: TandemError | None = None
        self.submitted = asyncio.Event()

    @property
    def life(self) -> WorkerLife:
        """As registered."""
        return self.info.life

    @property
    def in_flight(self) -> int:
        """Rooms that have not ended."""
        return len(self.legs)

    def submit(self, submit: session_pb2.Submit, leg: Leg) -> None:
        """Notes it."""
        if self.refuses is not None:
            raise self.refuses
        self.submits.append(submit)
        self.legs[submit.room] = leg
        self.submitted.set()

    def cancel(self, room: RoomId, why: TandemError) -> None:
        """Notes it, as often as Session would send it: once, for a room that runs."""
        if self.legs.pop(room, None) is not None:
            self.cancelled[room] = why

    def forget(self, room: RoomId) -> None:
        """Notes it."""
        self.legs.pop(room, None)
        self.forgotten.append(room)

    async def next_submit(self) -> session_pb2.Submit:
        """The next room that it is sent."""
        await asyncio.wait_for(self.submitted.wait(), 10)
        self.submitted.clear()
        return self.submits[-1]

    def bring(self, delta: session_pb2.Delta) -> None:
        """Plays the worker: a delta arrives."""
        leg = self.legs.pop(delta.room) if delta.HasField("finish") else self.legs[delta.room]
        leg.on_delta(delta)

    def lose(self, error: TandemError) -> None:
        """Plays a lost Session."""
        legs, self.legs = self.legs, {}
        for leg in legs.values():
            leg.on_lost(error)


@dataclass(slots=True)
class NotingWorkers:
    """Where a router finds NotingWorkers, and a catalogue its facts."""

    prefills: list[NotingWorker] = field(default_factory=list)
    decodes: list[NotingWorker] = field(default_factory=list)
    unified: list[NotingWorker] = field(default_factory=list)
    expected: bool = False
    """Whether there are workers that can serve, whatever these lists hold."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def known(self, model: str) -> bool:
        """As the test says."""
        return self.expected

    def sessions(self, role: Role, model: str) -> list[NotingWorker]:
        """All of a role."""
        return {Role.PREFILL: self.prefills, Role.DECODE: self.decodes, Role.UNIFIED: self.unified}[role]

    def crew(self, role: Role, model: str) -> Crew[NotingWorker]:
        """All of a role, as they are now."""
        return Crew(self.sessions(role, model))

    async def wait_changed(self) -> None:
        """They change only where a test says so."""
        await self.changed.wait()
        self.changed.clear()

    def models(self) -> tuple[str, ...]:
        """One."""
        return (MODEL,)

    def gone_lately(self, model: str) -> bool:
        """Never."""
        return False

    def context_tokens(self, model: str) -> int:
        """Small."""
        return CONTEXT


class FirstOfAll(Dice):
    """Always the first worker that there is to choose from."""

    def draw(self) -> int:
        """Zero."""
        return 0


def one_each() -> NotingWorkers:
    """A prefill and a decode worker."""
    return NotingWorkers([NotingWorker("p0", Role.PREFILL)], [NotingWorker("d0", Role.DECODE)])


def untraced() -> Tracing:
    """Records nothing."""
    return Tracing("gateway", "g", TraceSettings(enabled=False))


def router_of(
    workers: NotingWorkers,
    max_attempts: int = 3,
    tracing: Tracing | None = None,
    policy: PolicyName = PolicyName.ROUND_ROBIN,
) -> Router:
    """A router that does not wait between attempts."""
    policies = dict.fromkeys(Role, policy)
    settings = RouterSettings(max_attempts, retry_backoff_ms=0, prefix_tokens=8)
    return Router(workers, settings, policies, tracing or untraced())


def sequence(ids: tuple[int, ...] = (1, 2, 3), logprobs: session_pb2.LogprobOptions | None = None) -> Sequence:
    """A sequence of 8 tokens at most."""
    sampling = session_pb2.Sampling(max_new_tokens=8)
    item = Item(IdsPrompt(ids), "prompt", sampling, logprobs=logprobs)
    return Sequence(0, item, 0, MODEL, ids, sampling, LetterEncoder(), streamed=True)


def tokens(room: int, *ids: int, text: str = "") -> session_pb2.Delta:
    """A delta of a room that goes on."""
    return session_pb2.Delta(room=room, token_ids=ids, text=text)


def finish(room: int, kind: int = session_pb2.FINISH_KIND_LENGTH, **fields: object) -> session_pb2.Delta:
    """The last delta of a room."""
    return session_pb2.Delta(room=room, finish=session_pb2.Finish(kind=kind, **fields))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class AppLimits:
    """What tests of the HTTP API change."""

    max_concurrent: int = 8
    max_queued: int = 0
    tenants: Tenants = field(default_factory=Tenants)
    max_body_bytes: int = 4096
    keys: KeyRing = field(default_factory=KeyRing)
    max_tokenize_size: int = 300
    token_slots: Slots = field(default_factory=lambda: Slots(2))
    policy: PolicyName = PolicyName.ROUND_ROBIN
    parsers: Parsers | None = None


async def _nothing_seen() -> bytes:
    return b"{}"


def http_client(workers: NotingWorkers, limits: AppLimits | None = None) -> httpx.AsyncClient:
    """A client of the HTTP API in this process, without a socket. Batches, n: at most 4."""
    limits = limits or AppLimits()
    metrics = Metrics()
    counted = GatewayMetrics(metrics)
    catalog = Catalog(workers, "fallback")
    tokenizers = Letters()
    works = Works(
        Preparer(catalog, tokenizers, default_max_tokens=16),
        router_of(workers, policy=limits.policy),
        Slots(64),
        WaitingRoom(QueueLimits(limits.max_concurrent, limits.max_queued), counted, untraced()),
        limits.tenants,
        counted,
        GenerationLimits(limits.max_body_bytes, 60_000, 1000, 1),
        untraced(),
        Responses(ResponseStore(KeepLimits(4, 1 << 16, 60), SystemClock().monotonic), None),
        limits.parsers,
    )
    schema = SchemaLimits(max_n=4, max_batch=4, max_tokenize_size=limits.max_tokenize_size)
    parts = HttpParts(
        works,
        catalog,
        schema,
        TokenEndpoints(catalog, tokenizers, schema, limits.max_body_bytes, limits.token_slots),
        lambda model: f"models/{model}",
        1,
        lambda: "" if workers.decodes else "The gateway waits.",
        Scrape(metrics, None).render,
        Dashboard(Feed(_nothing_seen, SystemClock(), max_viewers=1), on=True),
        limits.keys,
    )
    transport = httpx.ASGITransport(build_http(parts), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=20)
