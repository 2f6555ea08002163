"""The open loop, with answers that come when the test says so."""

from __future__ import annotations

import asyncio

import pytest

from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.load import Progress, run_load
from tandem.cli.bench_serve.numbers import DROPPED
from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.workload import Piece, Question

pytestmark = pytest.mark.timeout(30)


def planned(*times: float) -> list[tuple[float, Question]]:
    return [(at, Question((Piece((0, 2, number), 3),), number + 1)) for number, at in enumerate(times)]


def prepare(question: Question) -> bytes:
    return str(question.new_tokens).encode()


class Server:
    """Answers nothing before it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers = asyncio.Event()

    async def ask(self, body: bytes) -> AnswerReader:
        clock = asyncio.get_running_loop().time
        reader = AnswerReader(Api.COMPLETIONS, clock())
        self.asked.append(int(body))
        await self.answers.wait()
        reader.ended_s = clock()
        return reader


async def test_all_are_sent_though_none_is_answered() -> None:
    server = Server()

    def changed(progress: Progress) -> None:
        if not server.answers.is_set():
            assert progress.ended == 0
        if progress.sent == 20:
            server.answers.set()

    outcomes = await run_load(planned(*[0.0] * 20), prepare, server.ask, 100, changed)
    assert server.asked == list(range(1, 21))
    assert [one.error for one in outcomes] == [""] * 20
    assert [one.asked_tokens for one in outcomes] == list(range(1, 21))
    assert all(one.late_ms >= 0 for one in outcomes)


async def test_what_exceeds_the_bound_is_dropped_and_counted() -> None:
    server = Server()

    def changed(progress: Progress) -> None:
        assert progress.in_flight <= 3
        if progress.dropped == 2:
            server.answers.set()

    outcomes = await run_load(planned(*[0.0] * 5), prepare, server.ask, 3, changed)
    assert [one.error for one in outcomes] == ["", "", "", DROPPED, DROPPED]
    assert server.asked == [1, 2, 3]


async def test_a_request_is_never_sent_before_its_time() -> None:
    server = Server()
    server.answers.set()
    outcomes = await run_load(planned(0.0, 0.03, 0.05), prepare, server.ask, 3)
    assert all(one.sent_s >= one.at_s for one in outcomes)
    assert outcomes[-1].sent_s >= 0.05
