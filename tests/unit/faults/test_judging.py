"""The fault matrix sees what it is there for: wrong tokens, ends that come too soon, errors, and what is left over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from benchmarks.fault_matrix import filled
from tests.support.faults.cells import Cell, Fault, Moment, Victim, cells
from tests.support.faults.findings import Finding, outcomes_of, reasons_of
from tests.support.faults.load import CONNECTION, Outcome, Request, ask
from tests.support.faults.moments import ARRANGEMENTS
from tests.support.faults.strikes import PREPARED
from tests.support.faults.table import tables

WANTED = [5, 6, 7]
LOST = {"error": {"code": "peer_lost"}}
WELL = Finding(
    cell=Cell("tcp", Moment.MID_DECODE, Victim.DECODE, Fault.KILL),
    outcomes={Outcome.ANSWERED: 4, Outcome.ERROR: 2},
    reasons={"peer_lost": 2},
    repeated=1,
    went_on=0,
    seconds=0.5,
    bound_s=3.0,
    silence_s=0.4,
    silence_bound_s=3.0,
    leaked=0,
    stuck=0,
    whole_s=2.0,
)


def events(*documents: object) -> str:
    """A stream of them, to its end."""
    return "".join(f"data: {json.dumps(one)}\n\n" for one in documents) + "data: [DONE]\n\n"


def said(*tokens: int) -> dict[str, list[int]]:
    """An answer, or an event."""
    return {"output_ids": list(tokens)}


def rooms_of(tokens: list[int]) -> list[int] | None:
    """One room, if they are right so far."""
    return [len(tokens)] if tokens == WANTED[: len(tokens)] else None


async def judged(status: int, text: str, *, stream: bool) -> Request:
    """A request that is answered so."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))
    request = Request([1, 2], len(WANTED), rooms_of, stream)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        await ask(client, request)
    return request


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        (events(said(5), said(5, 6, 7)), Outcome.ANSWERED, ""),
        (events(said(5), said(5, 6)), Outcome.WRONG, ""),
        (events(said(5), said(5, 9, 7)), Outcome.WRONG, ""),
        (events(), Outcome.WRONG, ""),
        (events(said(5), LOST), Outcome.ERROR, "peer_lost"),
        (events(said(9), LOST), Outcome.WRONG, "peer_lost"),
    ],
)
async def test_streams_are_judged(text: str, outcome: Outcome, reason: str) -> None:
    request = await judged(200, text, stream=True)
    assert (request.outcome, request.reason) == (outcome, reason)
    assert request.ended > 0


@pytest.mark.parametrize(
    ("status", "document", "outcome", "reason"),
    [
        (200, said(*WANTED), Outcome.ANSWERED, ""),
        (200, said(5, 6), Outcome.WRONG, ""),
        (503, {"error": {"code": "no_worker"}}, Outcome.ERROR, "no_worker"),
    ],
)
async def test_whole_answers_are_judged(status: int, document: object, outcome: Outcome, reason: str) -> None:
    request = await judged(status, json.dumps(document), stream=False)
    assert (request.outcome, request.reason) == (outcome, reason)


async def test_an_error_before_a_stream_begins_is_one() -> None:
    assert (await judged(502, json.dumps(LOST), stream=True)).reason == "peer_lost"


async def test_a_broken_connection_is_an_error_and_no_end_hangs() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    request = Request([1], len(WANTED), rooms_of, stream=True)
    async with httpx.AsyncClient(transport=httpx.MockTransport(broken), base_url="http://gateway") as client:
        await ask(client, request)
    assert (request.outcome, request.reason) == (Outcome.ERROR, CONNECTION)

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("never")

    request = Request([1], len(WANTED), rooms_of, stream=False)
    async with httpx.AsyncClient(transport=httpx.MockTransport(silent), base_url="http://gateway") as client:
        task = asyncio.create_task(ask(client, request))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    assert request.outcome is Outcome.HUNG


def test_the_longest_silence_counts_from_the_fault_on() -> None:
    stream = Request([], 0, rooms_of, stream=True, said=[1.0, 6.0, 6.5, 9.0, 9.5])
    assert [stream.silence_s(since) for since in (0.0, 6.1, 9.4, 9.5)] == [5.0, 2.5, pytest.approx(0.1), 0.0]
    assert not Request([], 0, rooms_of, stream=False).silence_s(0.0)


def test_outcomes_and_reasons_are_counted() -> None:
    requests = [
        Request([], 0, rooms_of, stream=False, outcome=Outcome.ANSWERED),
        Request([], 0, rooms_of, stream=False, outcome=Outcome.ERROR, reason="peer_lost"),
        Request([], 0, rooms_of, stream=False),
    ]
    assert outcomes_of(requests) == {Outcome.ANSWERED: 1, Outcome.ERROR: 1, Outcome.HUNG: 1}
    assert reasons_of(requests) == {"peer_lost": 1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outcomes": {Outcome.WRONG: 1}}, "1 wrong"),
        ({"outcomes": {Outcome.HUNG: 2}}, "2 hung"),
        ({"seconds": 3.1}, "after 3.1 s"),
        ({"silence_s": 3.2}, "said nothing for 3.2 s"),
        ({"leaked": 3}, "3 entries leaked"),
        ({"stuck": 1}, "1 rooms stuck"),
    ],
)
def test_problems_are_told(changes: dict[str, object], problem: str) -> None:
    finding = replace(WELL, **changes)  # type: ignore[arg-type]
    [told] = finding.problems
    assert problem in told
    assert told in tables([finding])


def test_a_finding_without_problems_is_a_row() -> None:
    assert not WELL.problems
    assert "| decode | SIGKILL | mid-decode | 4 answered, 2 `peer_lost`, 1 repeated; 0.50 s |" in tables([WELL])


def test_every_cell_can_be_arranged() -> None:
    found = list(cells(["tcp", "cma"]))
    assert len(found) == len(set(found)) == 2 * 4 * 4 * 4
    assert set(ARRANGEMENTS) == set(Moment)
    assert set(PREPARED) == set(Fault)


def test_only_what_is_between_the_markers_changes() -> None:
    page = "a\n<!-- x: made by y -->\nold\n<!-- /x -->\nb"
    assert filled(page, "new", name="x", made_by="y") == page.replace("old", "new")
    with pytest.raises(ValueError, match="the page has no"):
        filled(page, "new", name="z", made_by="y")
