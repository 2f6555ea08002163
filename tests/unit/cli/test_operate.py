"""Pure parts of the operator's commands: who is asked, what completion offers, how tables read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tandem.cli import completion
from tandem.cli.control import settings_document, settings_lines
from tandem.cli.rooms import duration, table_of_ranks, table_of_rooms
from tandem.cli.services import Answer, Service, admin_address, pick, services_here
from tandem.core.errors import ErrorReason, TandemError
from tandem.v1 import admin_pb2, common_pb2, control_pb2, session_pb2

SERVICES = [Service(name, name.partition("-")[0], f"h:{port}") for port, name in enumerate(("bootstrap", "decode-0"))]


@pytest.fixture
def state_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `tandem up` writes it; a prefill worker has not started."""
    rows = [
        {"name": "bootstrap", "kind": "bootstrap", "stage": "ready", "address": "127.0.0.1:1"},
        {"name": "prefill-0", "kind": "prefill", "stage": "loading", "address": ""},
        {"name": "decode-0", "kind": "decode", "stage": "ready", "address": "127.0.0.1:2"},
        {"name": "gateway", "kind": "gateway", "stage": "ready", "address": "127.0.0.1:8000"},
    ]
    state = {
        "pid": 1,
        "model": "m",
        "url": "http://127.0.0.1:8000",
        "admin": "127.0.0.1:3",
        "bootstrap": "127.0.0.1:1",
        "ready": True,
        "processes": rows,
    }
    path = tmp_path / "up.json"
    path.write_text(json.dumps(state))
    monkeypatch.setenv("TANDEM_CLI_STATE_FILE", str(path))
    return path


def text_of(renderable: object, width: int = 200) -> list[str]:
    """Lines as a pipe gets them."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_services_of_the_state_file(state_file: Path) -> None:
    assert [(one.name, one.address) for one in services_here(state_file)] == [
        ("bootstrap", "127.0.0.1:1"),
        ("prefill-0", ""),
        ("decode-0", "127.0.0.1:2"),
        ("gateway", "127.0.0.1:3"),
    ]
    assert admin_address("", state_file) == "127.0.0.1:3"
    assert admin_address("http://h:9", state_file) == "h:9"


def test_a_system_that_is_starting_has_no_admin_address(state_file: Path) -> None:
    state = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({**state, "admin": ""}))
    with pytest.raises(TandemError, match="still starting"):
        admin_address("", state_file)


def test_names_are_picked_once_and_wrong_ones_are_told_what_there_is() -> None:
    assert [one.name for one in pick(SERVICES, ["decode-0", "decode-0", "bootstrap"])] == ["decode-0", "bootstrap"]
    with pytest.raises(TandemError, match="no 'decode-9' in this system; there are bootstrap, decode-0") as wrong:
        pick(SERVICES, ["decode-9"])
    assert wrong.value.reason is ErrorReason.UNKNOWN_WORKER


def test_completion_offers_what_runs(state_file: Path) -> None:
    assert completion.worker_ids("") == ["prefill-0", "decode-0"]
    assert completion.worker_ids("dec") == ["decode-0"]
    assert completion.service_names("g") == ["gateway"]
    state_file.write_text("{")
    assert completion.worker_ids("") == []
    state_file.unlink()
    assert completion.service_names("") == []
    assert completion.policy_names("r") == ["random", "round_robin"]
    assert completion.log_levels("de") == ["DEBUG"]


@pytest.mark.parametrize(("ms", "text"), [(0, "0 ms"), (999, "999 ms"), (12_340, "12.3 s"), (600_000, "10 min")])
def test_durations(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_rooms_as_tables() -> None:
    room = admin_pb2.GatewayRoom(
        room=7,
        request_id="r-1",
        attempt=2,
        phase=admin_pb2.ROOM_PHASE_FIRST_TOKEN,
        prefill=common_pb2.WorkerRef(worker_id="p0"),
        decode=common_pb2.WorkerRef(worker_id="d0"),
        age_ms=1500,
        left_ms=598_500,
    )
    wide = admin_pb2.GatewayRoom()
    wide.CopyFrom(room)
    wide.room, wide.request_id = 2**63 - 1, "r" * 64
    assert any(line.startswith(str(2**63 - 1)) for line in text_of(table_of_rooms([wide]), 80)), "in one piece"
    _, line = text_of(table_of_rooms([room]))
    assert " ".join(line.split()) == "7 r-1 2 first token p0 d0 1.5 s 9 min"
    rank = session_pb2.RankRoom(room=7, state="receiving", granted_pages=3, bytes_moved=2_500_000, age_ms=20, left_ms=0)
    rank.peer.worker_id, rank.rank.tp_rank = "p0", 1
    answers = [
        Answer(SERVICES[1], session_pb2.ListRankRoomsResponse(rooms=[rank])),
        Answer(SERVICES[0], error="silent"),
    ]
    _, line = text_of(table_of_ranks(answers))
    assert " ".join(line.split()) == "decode-0 dp0 pp0 tp1 7 receiving p0 3 2.5 MB 20 ms 0 ms"


def test_settings_as_lines_and_as_json() -> None:
    said = control_pb2.GetSettingsResponse(service="decode", worker_id="decode-0", log_level="DEBUG")
    said.settings.add(variable="TANDEM_DECODE_PORT", value="5")
    answers = [Answer(SERVICES[1], said), Answer(SERVICES[0], error="silent")]
    assert list(settings_lines(answers)) == ["# decode-0, log level DEBUG", "TANDEM_DECODE_PORT=5", ""]
    assert settings_document(answers) == {
        "decode-0": {"service": "decode", "log_level": "DEBUG", "settings": {"TANDEM_DECODE_PORT": "5"}}
    }
