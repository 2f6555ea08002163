"""What `tandem bench gateway` makes of its measurements, and what its loads and mock workers say."""

from __future__ import annotations

import asyncio
import json

import pytest

from tandem.cli.bench_gateway import http_worker, report
from tandem.cli.bench_gateway.figures import DEFAULT, QUICKACK, Figures, percentile
from tandem.cli.bench_gateway.http_load import Client, HttpLoad
from tandem.cli.bench_gateway.jobs import Answered, Job, Kind, Outcome
from tandem.cli.bench_gateway.peer_venv import SGLANG_ROUTER
from tandem.cli.bench_gateway.sides import TANDEM


def test_gaps_are_between_tokens_and_those_of_one_read_came_at_one_time() -> None:
    answered = Answered(1.0, reads=[(1.5, 0), (2.0, 1), (2.5, 2)])
    assert answered.first_ms == pytest.approx(500)
    assert answered.gaps_ms == [pytest.approx(500), 0]


def test_an_outcome_counts_what_failed_apart() -> None:
    outcome = Outcome.of([Answered(1, 200, [(2, 3)]), Answered(1, 503, [(9, 3)]), Answered(1, 200, [(2, 2)])], tokens=3)
    assert (outcome.answers, outcome.failed, outcome.tokens, outcome.first_ms) == (1, 2, 3, [1000])


def test_tokens_are_those_that_a_stream_tells_of() -> None:
    answered = Answered(1, 200, [(2, 1), (3, 1)], told_tokens=3)
    assert Outcome.of([answered], tokens=3).tokens == 3


def test_jobs_and_outcomes_survive_their_lines() -> None:
    job = Job(Kind.LEAVE, requests=3, leave_after_ms=0.5)
    assert Job.of_line(job.line()) == job
    outcome = Outcome.of([Answered(1, 200, [(2, 1), (3, 1)])], tokens=2)
    assert Outcome.of_line(outcome.line()) == outcome


def test_a_ratio_is_of_the_same_round() -> None:
    figures = Figures()
    for ours, theirs in ((10, 5), (30, 10), (40, 10)):
        figures.add("speed", TANDEM, DEFAULT, ours, "1/s")
        figures.add("speed", SGLANG_ROUTER, DEFAULT, theirs, "1/s")
    found = figures.ratio("speed", TANDEM, DEFAULT, SGLANG_ROUTER)
    assert found is not None
    assert found[0] == 3
    assert figures.ratio("speed", TANDEM, QUICKACK, SGLANG_ROUTER) is None


def test_verdicts_say_what_was_reached_and_what_was_not() -> None:
    figures = Figures()
    figures.add("whole p50, added", TANDEM, DEFAULT, 0.4, "ms")
    figures.add("memory per idle stream", TANDEM, QUICKACK, 41, "KiB")
    figures.add("requests per CPU-second of the gateway", TANDEM, DEFAULT, 1, "1/s")
    figures.add("requests per CPU-second of the gateway", SGLANG_ROUTER, DEFAULT, 2, "1/s")
    said = report.verdicts(figures)
    assert [line.rpartition(": ")[2] for line in said] == ["reached)", "MISSED)", "MISSED)"]
    assert "whole p50, added" in report.tables(figures)
    assert report.drawing(figures).count("<rect") == 1 + 2


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 101), 1.0) == 100


STREAM = b"".join(
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        http_worker._chunked(http_worker.GREETING),
        http_worker.TOKEN * 2 + http_worker.LAST,
        http_worker._chunked(http_worker.usage_event(113)) + http_worker.DONE,
        b"0\r\n\r\n",
    )
)


def stream(cut: int) -> Client:
    """A load's connection that has read a stream of two events with text, cut in two at a byte, that says that there
    were 113 tokens."""
    client = Client(quickack=False)
    client.expect()
    client.data_received(STREAM[:cut])
    client.data_received(STREAM[cut:])
    return client


async def test_a_load_counts_tokens_wherever_its_reads_are_cut() -> None:
    for cut in range(1, len(STREAM)):
        answered = await stream(cut).answer()
        assert sum(tokens for _, tokens in answered.reads) == 2, cut
        assert answered.tokens == 113, cut


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", None], ids=["whole", "stream"])
async def test_what_comes_after_a_job_was_given_up_is_nobodys(answer: bytes | None) -> None:
    client = Client(quickack=False)
    client.expect()
    waiting = asyncio.ensure_future(client.answer())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    client.data_received(answer or STREAM)


async def test_a_load_asks_anew_where_the_server_has_closed_its_connection() -> None:
    served: list[asyncio.Transport] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            served.append(transport)

        def data_received(self, data: bytes) -> None:
            served[-1].write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    load = HttpLoad(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", quickack=False)
    job = Job(Kind.WHOLE, requests=1)
    assert (await load.run(job)).answers == 1
    (kept,) = load._free
    served[0].close()
    await asyncio.wait_for(kept.ended.wait(), 20)
    assert (await asyncio.wait_for(load.run(job), 20)).answers == 1
    assert len(served) == 2
    server.close()


def test_events_of_the_mock_worker_are_those_of_the_api() -> None:
    event = json.loads(http_worker.GREETING.removeprefix(b"data: "))
    assert event["object"] == "chat.completion.chunk"
    assert event["choices"][0]["delta"] == {"role": "assistant", "content": ""}
