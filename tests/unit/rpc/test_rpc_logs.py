"""Log lines and metrics."""

from __future__ import annotations

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
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("tandem.x").exception("failed")
    logging.getLogger("tandem.x").debug("not shown")
    return stream.getvalue().splitlines()


def test_people_read_service_worker_and_request():
    first, second, *rest = lines(logs.LogFormat.HUMAN)
    assert first.endswith(" INFO decode/d0 [r-17] tandem.x: took 5 ms")
    assert second.endswith(" ERROR decode/d0 tandem.x: failed")
    assert rest[-1] == "ValueError: odd"


def test_json_lines():
    first, second = (json.loads(line) for line in lines(logs.LogFormat.JSON))
    assert (first["service"], first["worker_id"], first["request_id"]) == ("decode", "d0", "r-17")
    assert (first["level"], first["message"], first["logger"]) == ("INFO", "took 5 ms", "tandem.x")
    assert second["request_id"] == ""
    assert "ValueError: odd" in second["traceback"]


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
