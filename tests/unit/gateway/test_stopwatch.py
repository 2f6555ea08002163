"""TTFT, ITL and TPOT of requests, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.gateway import gateway_metrics
from tandem.gateway.gateway_metrics import GatewayMetrics, Stopwatch
from tandem.gateway.mailbox import News
from tandem.rpc.metrics import Metrics
from tandem.v1 import session_pb2

Turn = Callable[[float], None]


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Turn:
    """Turns the clock on."""
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(gateway_metrics, "time", Clock)

    def turn(seconds: float) -> None:
        now[0] += seconds

    return turn


def news(index: int, tokens: int, *, void: bool = False) -> list[News]:
    return [News(index, session_pb2.Delta(token_ids=range(tokens)), void)]


def sums(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """Count and sum of each histogram of an endpoint."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        of = {
            sample.name.removeprefix(family.name): sample.value
            for sample in family.samples
            if "endpoint" in sample.labels
        }
        if "_sum" in of:
            found[family.name] = (of["_count"], pytest.approx(of["_sum"]))
    return found


def test_a_request_of_one_sequence(turn: Turn) -> None:
    metrics = Metrics()
    watch = Stopwatch(GatewayMetrics(metrics), "/generate")
    watch.prepared("tiny", 3)
    turn(0.5)
    watch.saw(news(0, 1))
    turn(0.25)
    watch.saw(news(0, 1))
    turn(1.0)
    watch.saw(news(0, 2))
    turn(0.25)
    watch.saw(news(0, 0))  # its finish
    turn(9.0)
    watch.ended()
    assert sums(metrics) == {
        "gen_ai_server_time_to_first_token_seconds": (1, 0.5),
        "gen_ai_server_time_per_output_token_seconds": (1, (2.0 - 0.5) / 3),
        "tandem_gateway_inter_token_seconds": (2, 0.25 + 1.0 / 2),
        "gen_ai_server_request_duration_seconds": (1, 11.0),
    }


def test_sequences_of_one_request_have_a_pace_each_and_one_first_token(turn: Turn) -> None:
    metrics = Metrics()
    watch = Stopwatch(GatewayMetrics(metrics), "/generate")
    watch.prepared("tiny", 3)
    watch.saw(news(0, 1))
    turn(1.0)
    watch.saw(news(1, 1))
    turn(1.0)
    watch.saw(news(0, 1) + news(1, 1))
    watch.saw(news(2, 1))
    watch.ended()
    found = sums(metrics)
    assert found["gen_ai_server_time_to_first_token_seconds"] == (1, 0)
    assert found["gen_ai_server_time_per_output_token_seconds"] == (2, 2.0 + 1.0), "one token has no pace"


def test_tokens_that_are_void_do_not_make_an_answer_faster(turn: Turn) -> None:
    metrics = Metrics()
    watch = Stopwatch(GatewayMetrics(metrics), "/generate")
    watch.prepared("tiny", 3)
    watch.saw(news(0, 10))
    turn(3.0)
    watch.saw(news(0, 0, void=True))
    turn(1.0)
    watch.saw(news(0, 5))
    watch.ended()
    assert sums(metrics)["gen_ai_server_time_per_output_token_seconds"] == (1, 4.0 / 4)
