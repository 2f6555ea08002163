"""Log lines and metrics."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from tandem.rpc import logs
from tandem.rpc.metrics import Metrics


@pytest.fixture(autouse=True)
def _restore_root():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(log_format: logs.LogFormat) -> list[str]:
    stream = io.StringIO()
    logs.setup("decode", worker_id="d0", log_format=log_format, stream=stream)
    token = logs.request_id.set("r-17")
    logging.getLogger("tandem.x").info("took %d ms", 5)
    logs.request_id.reset(token)
    logging.getLogger("tandem.x").info("room 7", extra={"request_id": "r-18", "trace_id": "ab" * 16})
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("tandem.x").exception("failed")
    logging.getLogger("tandem.x").debug("not shown")
    return stream.getvalue().splitlines()


def test_people_read_service_worker_and_request():
    first, traced, second, *rest = lines(logs.LogFormat.HUMAN)
    assert traced.endswith(f" INFO decode/d0 [r-18 {'ab' * 16}] tandem.x: room 7")
    assert first.endswith(" INFO decode/d0 [r-17] tandem.x: took 5 ms")
    assert second.endswith(" ERROR decode/d0 tandem.x: failed")
    assert rest[-1] == "ValueError: odd"


def test_json_lines():
    first, traced, second = (json.loads(line) for line in lines(logs.LogFormat.JSON))
    assert (first["service"], first["worker_id"], first["request_id"]) == ("decode", "d0", "r-17")
    assert (first["level"], first["message"], first["logger"]) == ("INFO", "took 5 ms", "tandem.x")
    assert (traced["request_id"], traced["trace_id"]) == ("r-18", "ab" * 16)
    assert (second["request_id"], second["trace_id"]) == ("", "")
    assert "ValueError: odd" in second["traceback"]


async def test_a_task_and_what_it_starts_are_about_its_request():
    stream = io.StringIO()
    logs.setup("decode", log_format=logs.LogFormat.JSON, stream=stream)

    async def work(name: str) -> None:
        logging.getLogger("tandem.x").info("%s", name)

    async def serve(name: str) -> None:
        logs.about(name, f"trace of {name}")
        await asyncio.create_task(work(name))

    await asyncio.gather(serve("a"), serve("b"), work(""))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((one["message"], one["request_id"], one["trace_id"]) for one in found) == [
        ("", "", ""),
        ("a", "a", "trace of a"),
        ("b", "b", "trace of b"),
    ]


def test_two_registries_do_not_share_counters():
    one, other = Metrics(), Metrics()
    one.count_rpc("/a.B/C", "OK")
    one.count_rpc("/a.B/C", "OK")
    assert b'tandem_rpc_calls_total{code="OK",method="/a.B/C"} 2.0' in one.render()
    assert b"/a.B/C" not in other.render()
    one.gauge("tandem_rooms", "Rooms.").set(3)
    one.histogram("tandem_wait_seconds", "Waits.", (0.1, 1.0)).observe(0.5)
    assert b"tandem_rooms 3.0" in one.render()
    assert b'tandem_wait_seconds_bucket{le="1.0"} 1.0' in one.render()
