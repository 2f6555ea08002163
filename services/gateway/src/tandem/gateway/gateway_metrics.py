"""What the gateway counts and measures, under the GenAI conventions' names where they exist."""

from __future__ import annotations

import time
from typing import Final

from tandem.core.errors import ErrorReason
from tandem.core.ids import RequestId
from tandem.gateway.mailbox import News
from tandem.rpc.metrics import Metrics

_TTFT_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_ITL_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_E2E_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


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
        self.requests = metrics.counter(
            "tandem_gateway_requests", "HTTP requests answered, by endpoint and status code.", ("endpoint", "code")
        )
        self.errors = metrics.counter(
            "tandem_gateway_errors", "Requests that failed, by endpoint and reason.", ("endpoint", "reason")
        )
        self.retries = metrics.counter(
            "tandem_gateway_retries", "Attempts that were repeated, by the reason they failed for.", ("reason",)
        )
        self.resumed = metrics.counter(
            "tandem_gateway_resumed", "Answers that went on, on other workers, after a part of them was told."
        )
        self.in_flight = metrics.gauge("tandem_gateway_sequences_in_flight", "Sequences being generated.")
        self.tokens = metrics.counter("tandem_gateway_tokens", "Tokens, by kind: prompt or completion.", ("kind",))
        self.ttft = metrics.histogram(
            "gen_ai_server_time_to_first_token_seconds", "From the request to its first token.", _TTFT_S, ("endpoint",)
        )
        self.itl = metrics.histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between two pieces of news of one sequence, per token.",
            _ITL_S,
            ("endpoint",),
        )
        self.duration = metrics.histogram(
            "gen_ai_server_request_duration_seconds", "From the request to its end.", _E2E_S, ("endpoint",)
        )

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


class Stopwatch:
    """Times one request."""

    def __init__(self, metrics: GatewayMetrics, endpoint: str) -> None:
        self._started = time.monotonic()
        self._observer = metrics.observer
        self._ttft = metrics.ttft.labels(endpoint)
        self._itl = metrics.itl.labels(endpoint)
        self._duration = metrics.duration.labels(endpoint)
        self._completion = metrics.tokens.labels("completion")
        self._last: dict[int, float] = {}

    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._started

    def saw(self, news: list[News]) -> None:
        """News are about to be written."""
        now = time.monotonic()
        for one in news:
            tokens = len(one.delta.token_ids)
            if not tokens:
                continue
            self._completion.inc(tokens)
            itl_s: float | None = None
            if one.index in self._last:
                itl_s = (now - self._last[one.index]) / tokens
                self._itl.observe(itl_s)
            elif not self._last:
                self._ttft.observe(now - self._started)
                self._observer.saw_first_token(now, now - self._started)
            self._observer.saw_tokens(now, tokens, itl_s)
            self._last[one.index] = now

    def ended(self) -> None:
        """The request was answered to its end."""
        self._duration.observe(self.elapsed())
