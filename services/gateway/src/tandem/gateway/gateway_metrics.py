"""What the gateway counts and measures, under the GenAI conventions' names where they exist."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import prometheus_client as prometheus

from tandem.core.breaker import State as BreakerState
from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.core.fair_queue import Priority
from tandem.core.ids import RequestId, Role
from tandem.core.kv_index import KvIndex
from tandem.core.refusals import Refusal
from tandem.gateway.mailbox import News
from tandem.gateway.routing.pool import Standing, State
from tandem.rpc.metrics import Count, Family, Kind, Metrics, Sample, Tally
from tandem.rpc.process_metrics import add_process_metrics

_TTFT_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_E2E_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MAX_MODELS: Final = 64
"""Models that are measured by name, over the life of a process; a label needs a bound."""
OTHER: Final = "other"

_QUEUE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

WORKERS: Final = Family(
    "tandem_gateway_workers",
    Kind.GAUGE,
    "Workers that this gateway knows, by role and state: ready (a Session is open), draining, or lost (there is no"
    " Session).",
    ("role", "state"),
)
ROOMS: Final = Family(
    "tandem_gateway_rooms", Kind.GAUGE, "Rooms of this gateway that run, by role of the leg.", ("role",)
)
CONNECTED: Final = Family(
    "tandem_gateway_bootstrap_connected", Kind.GAUGE, "1 while bootstrap tells who is in the cluster, else 0."
)
BREAKERS: Final = Family(
    "tandem_gateway_breakers",
    Kind.GAUGE,
    "Workers that this gateway knows, by role and state of their circuit breaker: closed (they get rooms), open (they"
    " get none for a while), half_open (one room is a probe).",
    ("role", "state"),
)
IN_FLIGHT: Final = Family("tandem_gateway_sequences_in_flight", Kind.GAUGE, "Sequences being generated.")
WAITING: Final = Family(
    "tandem_gateway_waiting", Kind.GAUGE, "Requests that wait for their turn, by class of priority.", ("class",)
)
ROOM: Final = Family(
    "tandem_gateway_decode_room_tokens",
    Kind.GAUGE,
    "The largest sequence, prompt and new tokens, that has room on a worker of a model now; none where"
    " TANDEM_GATEWAY_DECODE_COMMIT is 0.",
    ("model",),
)
HELD: Final = Family(
    "tandem_gateway_held_pages",
    Kind.GAUGE,
    "Pages that this gateway knows to be in prefix caches, over all workers; 0 while no policy goes by them.",
)
HELD_NOT_KEPT: Final = Family(
    "tandem_gateway_held_pages_not_kept",
    Kind.COUNTER,
    "Pages that workers told of and there was no place for: see TANDEM_GATEWAY_HELD_PAGES.",
)
HELD_LOST_SYNC: Final = Family(
    "tandem_gateway_held_pages_lost_sync",
    Kind.COUNTER,
    "How often news of what a worker holds were missed, so that it was asked anew.",
)
PROCESSES: Final = Family(
    "tandem_gateway_processes",
    Kind.GAUGE,
    "Processes of this gateway, by whether this scrape holds what they tell (told) or not (silent): they are being"
    " started, or did not answer in time.",
    ("state",),
)
MEMBERS: Final = (WORKERS, ROOMS, CONNECTED)


@dataclass(frozen=True, slots=True)
class EndpointMeters:
    """What is measured of one endpoint; its labels are bound."""

    ttft: prometheus.Histogram
    tpot: prometheus.Histogram
    itl: Tally
    duration: prometheus.Histogram
    prompt: Count
    completion: Count


class Observer:
    """Hears what is measured, as it is measured; this one does not listen. All is called on the loop, must not block,
    and costs the data path what it takes."""

    def saw_first_token(self, now: float, ttft_s: float) -> None:
        """A request's first token came. now: monotonic seconds."""

    def saw_tokens(self, now: float, tokens: int, itl_s: float | None) -> None:
        """Tokens of a sequence came, itl_s seconds per token after those before them; None = its first."""

    def saw_answer(self, endpoint: str) -> None:
        """A request of an endpoint has ended, well or not."""

    def saw_error(self, endpoint: str, reason: ErrorReason, request_id: RequestId) -> None:
        """A request failed."""


class GatewayMetrics:
    """The gateway's metrics, on the process's registry, and passed on to an observer."""

    def __init__(self, metrics: Metrics, observer: Observer | None = None) -> None:
        self.observer = observer or Observer()
        self._metrics = metrics
        self.lag = add_process_metrics(metrics, "gateway")
        self.requests = metrics.counter(
            "tandem_gateway_requests",
            "HTTP requests answered, by endpoint and status code; 499: the client had gone.",
            ("endpoint", "code"),
        )
        self.errors = metrics.counter(
            "tandem_gateway_errors",
            "Requests that failed, by endpoint and reason, streams that broke off too.",
            ("endpoint", "reason"),
        )
        self.retries = metrics.counter(
            "tandem_gateway_retries", "Attempts that were repeated, by the reason they failed for.", ("reason",)
        )
        self.no_budget = metrics.counter(
            "tandem_gateway_retry_budget_spent",
            "Attempts that failed and were not repeated, since too many were of late.",
        )
        self.hedges = metrics.counter(
            "tandem_gateway_hedges",
            "Answers for which a second room was asked, as the first said nothing for a while; won: that one did.",
            ("won",),
        )
        self.resumed = metrics.counter(
            "tandem_gateway_resumed", "Answers that went on, on other workers, after a part of them was told."
        )
        self._opened = metrics.counter(
            "tandem_gateway_breaker_openings",
            "Circuit breakers that opened, by role: a worker failed too many rooms in a row, or its probe.",
            ("role",),
        )
        self._held_tokens = metrics.counter(
            "tandem_gateway_held_tokens",
            "Prompt tokens that the chosen worker was known to hold, by role, where its policy goes by that.",
            ("role",),
        )
        self.limit = metrics.gauge(
            "tandem_gateway_sequences_limit", "Sequences that may be; requests for more wait for their turn."
        )
        self.tokens = metrics.counts(
            "tandem_gateway_tokens", "Tokens, by model and kind: prompt or completion.", ("kind", "model")
        )
        self._add_times(metrics)
        self._meters: dict[tuple[str, str], EndpointMeters] = {}
        self._models: set[str] = set()
        for reason, spec in CATALOGUE.items():
            if spec.retryable:
                self.retries.labels(reason.value)
        for role in Role:
            self._opened.labels(role.value)
        for won in (True, False):
            self.hedges.labels(str(won).lower())
        self._refused = metrics.counter(
            "tandem_gateway_refusals",
            "Requests to generate that were refused for now, by what they came up against.",
            ("limit",),
        )
        for refusal in Refusal:
            self._refused.labels(refusal.value)
        waits = metrics.histogram(
            "tandem_gateway_waiting_seconds",
            "Wait of a request for its turn, by class of priority; those too that had it at once.",
            _QUEUE_S,
            ("class",),
        )
        self._waits = {priority: waits.labels(priority.value) for priority in Priority}
        self._held_of = {role: self._held_tokens.labels(role.value) for role in Role}

    def _add_times(self, metrics: Metrics) -> None:
        # Told by tandem.gateway.siblings.scrape, which knows of the others.
        metrics.families.append(PROCESSES)
        self.prepared = metrics.histogram(
            "tandem_gateway_prepare_seconds",
            "From a request until its prompts are tokens: body, template and tokenizer.",
            _QUEUE_S,
        )
        self.queue = metrics.histogram(
            "tandem_gateway_queue_seconds",
            "Wait of an attempt for workers that take it. Workers queue too: see tandem_room_queue_seconds.",
            _QUEUE_S,
        )
        self.ttft = metrics.histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "TTFT: from a request to its first token.",
            _TTFT_S,
            ("endpoint", "model"),
        )
        self._tpot = metrics.histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "TPOT of a sequence: from its first token to its end, over its tokens less one.",
            _TOKEN_S,
            ("endpoint", "model"),
        )
        self._itl = metrics.tally(
            "tandem_gateway_inter_token_seconds",
            "ITL: between two pieces of news of one sequence, per token.",
            _TOKEN_S,
            ("endpoint", "model"),
        )
        self._duration = metrics.histogram(
            "gen_ai_server_request_duration_seconds",
            "E2E: from a request to its end, if its answer had begun.",
            _E2E_S,
            ("endpoint", "model"),
        )

    def of(self, endpoint: str, model: str) -> EndpointMeters:
        """The meters of an endpoint and a model; models beyond MAX_MODELS share theirs."""
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                model = OTHER
            self._models.add(model)
        if (endpoint, model) not in self._meters:
            self._meters[endpoint, model] = EndpointMeters(
                ttft=self.ttft.labels(endpoint, model),
                tpot=self._tpot.labels(endpoint, model),
                itl=self._itl.labels(endpoint, model),
                duration=self._duration.labels(endpoint, model),
                prompt=self.tokens.labels("prompt", model),
                completion=self.tokens.labels("completion", model),
            )
        return self._meters[endpoint, model]

    def count_answer(self, endpoint: str, status: int) -> None:
        """A request was answered."""
        self.requests.labels(endpoint, str(status)).inc()
        self.observer.saw_answer(endpoint)

    def count_error(self, endpoint: str, reason: ErrorReason, request_id: RequestId) -> None:
        """A request failed."""
        self.errors.labels(endpoint, reason.value).inc()
        self.observer.saw_error(endpoint, reason, request_id)

    def count_retry(self, reason: ErrorReason) -> None:
        """An attempt failed with this reason, and another follows."""
        self.retries.labels(reason.value).inc()

    def count_refusal(self, refusal: Refusal) -> None:
        """A request is refused for now."""
        self._refused.labels(refusal.value).inc()

    def saw_wait(self, priority: Priority, waited_s: float) -> None:
        """A request got its place."""
        self._waits[priority].observe(waited_s)

    def follow_waiting(self, waiting: Callable[[], Mapping[Priority, int]], used: Callable[[], int]) -> None:
        """Sets where to look, for each scrape, how many requests wait, and how many sequences have a place."""
        self._metrics.read((IN_FLIGHT,), lambda: [Sample(IN_FLIGHT, used())])
        self._metrics.read(
            (WAITING,), lambda: [Sample(WAITING, count, (one.value,)) for one, count in waiting().items()]
        )

    def follow_room(self, room: Callable[[], Mapping[str, int]]) -> None:
        """Sets where to look, for each scrape, what has room where it decodes, by model."""
        self._metrics.read((ROOM,), lambda: [Sample(ROOM, tokens, (model,)) for model, tokens in room().items()])

    def count_hedge(self, won: bool) -> None:
        """A second room was asked for an answer; won: it was heard."""
        self.hedges.labels(str(won).lower()).inc()

    def count_breaker(self, role: Role) -> None:
        """A worker's circuit breaker has opened."""
        self._opened.labels(role.value).inc()

    def count_held(self, role: Role, tokens: int) -> None:
        """The chosen worker of a role is known to hold so many of a prompt's tokens."""
        self._held_of[role].inc(tokens)

    def follow_held(self, index: KvIndex) -> None:
        """Sets where to look, for each scrape, what is known of prefix caches."""
        self._metrics.read((HELD, HELD_NOT_KEPT, HELD_LOST_SYNC), lambda: _held(index))

    def follow_breakers(self, states: Callable[[], Iterable[tuple[Role, BreakerState]]]) -> None:
        """Sets where to look, for each scrape, how the breakers of all workers are."""
        self._metrics.read((BREAKERS,), lambda: _breakers(states()))

    def follow(self, members: Callable[[], Iterable[Standing]], connected: Callable[[], bool]) -> None:
        """Sets where to look, for each scrape, who is in the cluster."""
        self._metrics.read(MEMBERS, lambda: _members(members(), connected()))


def _breakers(states: Iterable[tuple[Role, BreakerState]]) -> Iterator[Sample]:
    workers = Counter(states)
    for role in Role:
        yield from (Sample(BREAKERS, workers[role, state], (role.value, state.value)) for state in BreakerState)


def _held(index: KvIndex) -> Iterator[Sample]:
    yield Sample(HELD, index.entries)
    yield Sample(HELD_NOT_KEPT, index.not_kept)
    yield Sample(HELD_LOST_SYNC, index.gaps)


def _members(members: Iterable[Standing], connected: bool) -> Iterator[Sample]:
    workers, rooms = Counter[tuple[Role, State]](), Counter[Role]()
    for member in members:
        workers[member.role, member.state] += 1
        rooms[member.role] += member.rooms
    for role in Role:
        yield from (Sample(WORKERS, workers[role, state], (role.value, state.value)) for state in State)
        yield Sample(ROOMS, rooms[role], (role.value,))
    yield Sample(CONNECTED, int(connected))


@dataclass(slots=True)
class _Pace:
    """Tokens of one sequence."""

    first: float
    last: float
    tokens: int


class Stopwatch:
    """Times one request. `prepared` comes first, once its model is known."""

    def __init__(self, metrics: GatewayMetrics, endpoint: str) -> None:
        self._started = time.monotonic()
        self._observer = metrics.observer
        self._metrics = metrics
        self._endpoint = endpoint
        self._meters: EndpointMeters
        self._paces: dict[int, _Pace] = {}
        self.first_token_s: float | None = None
        """Seconds from the request to its first token, once that is there."""

    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._started

    def prepared(self, model: str, tokens: int) -> None:
        """Its prompts are tokens, so many of them, for a model that exists."""
        self._metrics.prepared.observe(self.elapsed())
        self._meters = self._metrics.of(self._endpoint, model)
        self._meters.prompt.inc(tokens)

    def saw(self, news: list[News]) -> None:
        """News are about to be written."""
        now = time.monotonic()
        for one in news:
            pace = self._paces.get(one.index)
            if tokens := len(one.delta.token_ids):
                self._meters.completion.inc(tokens)
                itl_s: float | None = None
                if pace is not None:
                    itl_s = (now - pace.last) / tokens
                    self._meters.itl.observe(itl_s)
                    pace.tokens += tokens
                else:
                    self._began(now)
                    self._paces[one.index] = pace = _Pace(now, now, tokens)
                self._observer.saw_tokens(now, tokens, itl_s)
            if pace is not None:
                pace.last = now
                if one.void:  # does not count: the sequence is as slow as its client sees it
                    pace.tokens = 0

    def _began(self, now: float) -> None:
        """A sequence has its first token."""
        if not self._paces:
            self.first_token_s = now - self._started
            self._meters.ttft.observe(self.first_token_s)
            self._observer.saw_first_token(now, self.first_token_s)

    def ended(self) -> None:
        """The request was answered to its end."""
        self._meters.duration.observe(self.elapsed())
        for pace in self._paces.values():
            if pace.tokens > 1:
                self._meters.tpot.observe((pace.last - pace.first) / (pace.tokens - 1))
