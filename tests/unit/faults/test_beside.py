"""What the comparison with SGLang's own PD judges and tells: any server's errors are errors, nothing is left out."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from benchmarks.sglang_pd.asking import Asked, ask
from benchmarks.sglang_pd.cells import BLOWS, Back, Result, kept, read_rows, table, told
from benchmarks.sglang_pd.sides import router_command, server_command
from benchmarks.sglang_pd_faults import BEGIN, END, filled
from tests.support.faults.load import CONNECTION, Outcome

WANTED = (5, 6, 7)
ABORTED = {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "status_code": 500}}}


def said(*tokens: int) -> dict[str, object]:
    """An answer, or an event."""
    return {"output_ids": list(tokens), "meta_info": {"finish_reason": None}}


async def judged(status: int, text: str, *, stream: bool) -> Asked:
    """A request that is answered so."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))
    async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
        return await ask(client, Asked([1, 2], WANTED, stream))


@pytest.mark.parametrize(
    ("documents", "outcome", "reason"),
    [
        ([said(5), said(5, 6, 7)], Outcome.ANSWERED, ""),
        ([said(5), said(5, 6)], Outcome.WRONG, ""),
        ([said(9)], Outcome.WRONG, ""),
        ([said(5), {"error": {"code": "peer_lost"}}], Outcome.ERROR, "peer_lost"),
        ([said(5), {"error": {"message": "gone"}}], Outcome.ERROR, "error"),
        ([said(9), {"error": {"message": "gone"}}], Outcome.WRONG, "error"),
        ([said(5), ABORTED], Outcome.ERROR, "abort 500"),
    ],
)
async def test_streams_are_judged(documents: list[object], outcome: Outcome, reason: str) -> None:
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in documents) + "data: [DONE]\n\n"
    one = await judged(200, text, stream=True)
    assert (one.outcome, one.reason) == (outcome, reason)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_status_is_an_error_whatever_comes_with_it(stream: bool) -> None:
    one = await judged(503, "no worker", stream=stream)
    assert (one.outcome, one.reason) == (Outcome.ERROR, "503")


async def test_broken_connections_are_errors_and_silence_hangs() -> None:
    async def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("never")

    for handler, outcome, reason in ((broken, Outcome.ERROR, CONNECTION), (silent, Outcome.HUNG, "")):
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://front") as client:
            one = await ask(client, Asked([1], WANTED), limit_s=0.05)
        assert (one.outcome, one.reason) == (outcome, reason)


def ended(outcome: Outcome, seconds: float, reason: str = "") -> Asked:
    """A request that has ended."""
    return Asked([], [], outcome=outcome, seconds=seconds, reason=reason)


def test_requests_are_told_by_kind_with_the_longest_time() -> None:
    asked = [
        ended(Outcome.HUNG, 60),
        ended(Outcome.ERROR, 1, "503"),
        ended(Outcome.ANSWERED, 2.0),
        ended(Outcome.ERROR, 31.25, "503"),
        ended(Outcome.ANSWERED, 0.5),
        ended(Outcome.WRONG, 1),
    ]
    assert told(asked) == "2 answered in 2.0 s, 2 `503` in 31.2 s, **1 wrong**, **1 hung** beyond 60 s"


def test_results_are_kept_and_the_last_counts() -> None:
    fine = [ended(Outcome.ANSWERED, 1)]
    kill, stop = BLOWS["prefill-kill"], BLOWS["decode-stop"]
    results = [Result("A", kill, fine, fine, Back(up_s, 12.3)) for up_s in (0, 9.6)]
    results.append(Result("B", stop, fine, [], Back(0, None)))
    shown = table(read_rows(map(kept, results)))
    assert shown.splitlines() == [
        "| struck | what | A | B |",
        "|---|---|---|---|",
        "| decode, SIGSTOP 5 s | in flight | not run | 1 answered in 1.0 s |",
        "|  | sent right after | not run |  |",
        "|  | all workers answer after | not run | not within 120 s |",
        "| prefill, SIGKILL | in flight | 1 answered in 1.0 s | not run |",
        "|  | sent right after | 1 answered in 1.0 s | not run |",
        "|  | all workers answer after | 12 s; gone until 10 s | not run |",
    ]


def test_only_what_is_between_the_markers_is_replaced() -> None:
    assert filled(f"a\n{BEGIN}\nold\n{END}\nz", "new") == f"a\n{BEGIN}\nnew\n{END}\nz"
    with pytest.raises(ValueError, match="has no"):
        filled("a", "new")


def test_the_router_knows_every_server_and_where_prefill_has_its_bootstrap() -> None:
    prefill = server_command("python", "nixl", "prefill", 100)
    assert prefill[prefill.index("--disaggregation-bootstrap-port") + 1] == "101"
    router = " ".join(router_command("python", {"prefill-0": 100, "decode-0": 120}, 200))
    assert "--prefill http://127.0.0.1:100 101 --decode http://127.0.0.1:120" in router
