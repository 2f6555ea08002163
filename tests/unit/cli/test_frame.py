"""Frames of `tandem top`: what they say, and that they fit."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tandem.cli.cluster import Member
from tandem.cli.frame import Rates, frame, rates
from tandem.v1 import admin_pb2, bootstrap_pb2, common_pb2

GB = 10**9


def worker(name: str, role: int, **numbers: object) -> admin_pb2.WorkerNumbers:
    """One that has told of itself; numbers win."""
    common: dict[str, object] = {
        "up": True,
        "known": True,
        "max_running": 8,
        "pages_total": 100,
        "pages_free": 100,
        **numbers,
    }
    ref = common_pb2.WorkerRef(worker_id=name, incarnation=5)
    return admin_pb2.WorkerNumbers(worker=ref, role=role, **common)  # type: ignore[arg-type]


def message(**fields: object) -> admin_pb2.WatchClusterResponse:
    """With policies."""
    return admin_pb2.WatchClusterResponse(prefill_policy="random", decode_policy="least_load", **fields)  # type: ignore[arg-type]


def shown(before: admin_pb2.WatchClusterResponse | None, now: admin_pb2.WatchClusterResponse, width: int = 80) -> str:
    """As a pipe gets it."""
    console = Console(file=io.StringIO(), width=width)
    console.print(frame("127.0.0.1:50051", before, now))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


BEFORE = message(
    at_ms=10_000,
    requests=5,
    errors=1,
    first_tokens=4,
    first_tokens_ms=100.0,
    completion_tokens=50,
    workers=[worker("decode-0", common_pb2.ROLE_DECODE, kv_bytes=GB)],
)
NOW = message(
    at_ms=12_000,
    requests=9,
    errors=2,
    first_tokens=6,
    first_tokens_ms=180.0,
    completion_tokens=250,
    workers=[
        worker(
            "decode-0",
            common_pb2.ROLE_DECODE,
            kv_bytes=4 * GB,
            in_flight=6,
            running=4,
            waiting=2,
            pages_free=39,
            rooms_succeeded=12,
            rooms_failed=3,
            links=[admin_pb2.LinkCount(provider="cma", links=2), admin_pb2.LinkCount(provider="tcp", links=1)],
        ),
        worker("p", common_pb2.ROLE_PREFILL, draining=True),
        worker("decode-1", common_pb2.ROLE_DECODE, up=False, known=False),
    ],
    rooms=[
        admin_pb2.PhaseCount(phase=admin_pb2.ROOM_PHASE_SUBMITTED, rooms=2),
        admin_pb2.PhaseCount(phase=admin_pb2.ROOM_PHASE_FIRST_TOKEN, rooms=1),
        admin_pb2.PhaseCount(phase=admin_pb2.ROOM_PHASE_DECODING, rooms=5),
    ],
)


def test_rates_are_differences_over_time() -> None:
    found = rates(BEFORE, NOW)
    assert (found.requests_per_s, found.errors_per_s, found.tokens_per_s) == (2.0, 0.5, 100.0)
    assert found.ttft_ms == 40.0
    assert found.kv_gb_per_s == {"decode-0": 1.5}


def test_no_rates_without_an_earlier_message_or_over_a_restart() -> None:
    assert rates(None, NOW) == Rates()
    assert rates(NOW, BEFORE) == Rates()
    fewer = message(at_ms=13_000, requests=1)
    assert rates(NOW, fewer) == Rates(), "another gateway has come"
    idle = message(at_ms=13_000, requests=9, first_tokens=6, first_tokens_ms=180.0)
    assert rates(NOW, idle).ttft_ms is None


def test_another_life_of_a_worker_has_no_speed_yet() -> None:
    reborn = worker("decode-0", common_pb2.ROLE_DECODE, kv_bytes=0)
    reborn.worker.incarnation = 6
    assert rates(BEFORE, message(at_ms=11_000, requests=5, workers=[reborn])).kv_gb_per_s == {}


def test_a_frame_says_all_of_it() -> None:
    lines = shown(BEFORE, NOW).splitlines()
    assert lines[0].startswith("gateway 127.0.0.1:50051  policy of prefill random, of decode")
    assert lines[1] == "requests 2.0/s  errors 0.5/s  tokens 100.0/s  TTFT 40 ms"
    assert lines[2].rstrip() == "rooms 8: submitted 2, first token 1, decoding 5"
    rows = [line.split() for line in lines[5:]]
    assert rows[0][:3] == ["p", "(prefill)", "0/0"]
    assert rows[0][-1] == "draining"
    assert rows[1] == [
        *("decode-0", "4/2", "75%", "██████░░░░", "61%", "1.50", "12/3"),
        *("cma", "2", "tcp", "1"),
    ]
    assert rows[2] == ["decode-1", "-", "0%", "-", "-", "-", "no", "Session"]


@pytest.mark.parametrize("before", [None, BEFORE])
def test_a_frame_fits_80_columns_whatever_the_names(before: admin_pb2.WatchClusterResponse | None) -> None:
    crowded = admin_pb2.WatchClusterResponse()
    crowded.CopyFrom(NOW)
    crowded.workers[0].worker.worker_id = "decode-on-a-machine-with-a-very-long-name.example.org"
    lines = shown(before, crowded).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "61%" in "".join(lines)


def test_an_empty_cluster_is_said() -> None:
    assert "No worker is registered." in shown(None, message())
    assert "rooms 0\n" in shown(None, message()).replace(" \n", "\n")


@pytest.mark.parametrize("breaker", [admin_pb2.BREAKER_STATE_OPEN, admin_pb2.BREAKER_STATE_HALF_OPEN])
def test_a_worker_that_the_gateway_does_not_trust_is_failing(breaker: admin_pb2.BreakerState) -> None:
    now = message(workers=[worker("decode-0", common_pb2.ROLE_DECODE, breaker=breaker, draining=True)])
    assert "failing" in shown(None, now)
    trusted = message(workers=[worker("decode-0", common_pb2.ROLE_DECODE, breaker=admin_pb2.BREAKER_STATE_CLOSED)])
    assert "failing" not in shown(None, trusted)


@pytest.mark.parametrize(("breaker", "state"), [("", "draining"), ("closed", "draining"), ("half_open", "failing")])
def test_the_list_of_workers_says_what_the_gateway_that_was_asked_thinks(breaker: str, state: str) -> None:
    info = bootstrap_pb2.WorkerInfo(worker=common_pb2.WorkerRef(worker_id="decode-0"), draining=True)
    member = Member(info, None, breaker)
    assert member.state == state
    assert member.document().get("breaker", "") == breaker
