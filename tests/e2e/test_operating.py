"""The operator's commands against a running system: what they show, and that what they change is changed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.settings import environment
from tests.support.system.command import tandem
from tests.support.system.system import System, running_system

SECRET = "open-sesame"
KEY = {"Authorization": f"Bearer {SECRET}"}
SERVICES = ["bootstrap", "prefill-0", "decode-0", "decode-1", "gateway"]
WAIT_S = 60
SHORT = {"prompt": "Once upon a time", "max_tokens": 2}
SLOW = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True}
"""Minutes, as each step of decode takes 20 ms."""


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    """One prefill worker, two decode workers."""
    options = ("--engine", "mock", "--model-name", "tiny", "--ratio", "1:2")
    slow = ("--engine-arg", "decode_us_per_step=20000")
    with running_system(folder, *options, *slow, env={"TANDEM_GATEWAY_API_KEYS": json.dumps([SECRET])}) as running:
        yield running


@pytest.fixture
def slow(system: System) -> Iterator[Future[httpx.Response]]:
    """A request that runs until it is ended."""
    with ThreadPoolExecutor(1) as threads:
        body = {"model": "tiny", **SLOW}
        url = f"{system.url}/v1/completions"
        headers = {**KEY, "X-Request-Id": "slow-1"}
        asking = threads.submit(httpx.post, url, json=body, headers=headers, timeout=WAIT_S, trust_env=False)
        yield asking
        if not asking.done():
            abort(system, decoding_room(system)["room"])
            asking.result(WAIT_S)


def told(system: System, *words: str) -> Any:
    """What a command prints with --json; fails if it does."""
    found = tandem(system, *words, "--json")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def decoding_room(system: System) -> dict[str, Any]:
    """The only room, once decode generates."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        rooms = told(system, "rooms")["rooms"]
        if rooms and rooms[0]["phase"] == "ROOM_PHASE_DECODING":
            [room] = rooms
            found: dict[str, Any] = room
            return found
    raise AssertionError("no room came to generate")


def abort(system: System, room: str) -> subprocess.CompletedProcess[str]:
    """Ends a room."""
    return tandem(system, "rooms", "abort", room)


def wait_logged(system: System, name: str, text: str, count: int = 1) -> None:
    """Reads the log of a process until a text is there so often."""
    path, pause = system.folder / "logs" / f"{name}.log", threading.Event()
    for _ in range(WAIT_S * 20):
        if path.read_text(errors="replace").count(text) >= count:
            return
        pause.wait(0.05)
    raise AssertionError(f"{name} did not log {text!r}\n{system.logs()}")


def test_a_slow_request_is_seen_by_gateway_and_ended(system: System, slow: Future[httpx.Response]) -> None:
    room = decoding_room(system)
    assert room["request_id"] == "slow-1"
    assert "slow-1" in tandem(system, "rooms").stdout
    ranks = told(system, "rooms", "--all")
    assert sorted(ranks["workers"]) == ["decode-0", "decode-1", "prefill-0"]
    assert ranks["errors"] == {}
    ended = abort(system, room["room"])
    assert "ended, was decoding, request slow-1" in ended.stdout
    response = slow.result(WAIT_S)
    assert (response.status_code, response.json()["error"]["code"]) == (499, "cancelled")
    again = abort(system, room["room"])
    assert again.returncode == 2
    assert f"no room {room['room']}" in again.stderr
    wait_logged(system, "gateway", f"room {room['room']} of request slow-1: decoding -> cancelled")


def submitted(system: System) -> dict[str, int]:
    """Rooms that each decode worker was ever given."""
    listed = json.loads(tandem(system, "workers", "--json").stdout)
    return {
        one["info"]["worker"]["worker_id"]: int(one["status"]["submitted"])
        for one in listed
        if one["info"]["role"] == "ROLE_DECODE"
    }


def routed(system: System) -> dict[str, int]:
    """To how many of four short requests, one after the other, each decode worker came."""
    before = submitted(system)
    for _ in range(4):
        answer = httpx.post(
            f"{system.url}/v1/completions",
            json={"model": "tiny", **SHORT},
            headers=KEY,
            timeout=WAIT_S,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
    after = submitted(system)
    return {name: after[name] - before[name] for name in after}


def test_a_policy_changes_where_requests_go(system: System, slow: Future[httpx.Response]) -> None:
    busy = decoding_room(system)["decode"]["worker_id"]
    assert routed(system)[busy] == 0, "least_load leaves the busy one alone"
    changed = told(system, "set-policy", "round_robin", "--role", "decode")
    assert changed == {"decode": {"before": "least_load", "after": "round_robin"}}
    try:
        assert routed(system)[busy] == 2
    finally:
        told(system, "set-policy", "least_load")
    assert not slow.done()


def test_a_log_level_changes_what_is_logged_and_returns(system: System, slow: Future[httpx.Response]) -> None:
    failed = "attempt 1 on prefill-0"
    logged = (system.folder / "logs" / "gateway.log").read_text().count(failed)
    assert "gateway: INFO -> ERROR" in tandem(system, "loglevel", "error").stdout
    room = decoding_room(system)["room"]
    abort(system, room)
    slow.result(WAIT_S)
    wait_logged(system, "gateway", f"room {room} of request slow-1: decoding -> cancelled")
    assert (system.folder / "logs" / "gateway.log").read_text().count(failed) == logged, "a warning, which is hidden"
    told(system, "loglevel", "INFO", "--for-s", "1", "--worker", "gateway")
    wait_logged(system, "gateway", "time is over: log level: INFO -> ERROR")
    assert told(system, "config", "--worker", "gateway")["services"]["gateway"]["log_level"] == "ERROR"
    assert list(told(system, "loglevel", "INFO", "--all")["services"]) == SERVICES
    with ThreadPoolExecutor(1) as threads:
        body = {"model": "tiny", **SLOW}
        url = f"{system.url}/v1/completions"
        asking = threads.submit(httpx.post, url, json=body, headers=KEY, timeout=WAIT_S, trust_env=False)
        abort(system, decoding_room(system)["room"])
        assert asking.result(WAIT_S).status_code == 499
    wait_logged(system, "gateway", failed, logged + 1)


def test_settings_in_force_hide_secrets(system: System) -> None:
    found = tandem(system, "config")
    assert found.returncode == 0, found.stderr
    assert [line[2:].partition(",")[0] for line in found.stdout.splitlines() if line.startswith("# ")] == SERVICES
    assert "TANDEM_GATEWAY_API_KEYS=********" in found.stdout
    assert "TANDEM_MOCK_DECODE_US_PER_STEP=20000.0" in found.stdout
    assert SECRET not in found.stdout
    assert SECRET not in system.logs(lines=10_000)


def test_top_draws_one_frame_of_80_columns(system: System) -> None:
    found = tandem(system, "top", "--once", COLUMNS="80")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("prefill-", "decode-"))] == SERVICES[1:4]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("set-policy", "best"), "there are random, round_robin, least_load"),
        (("loglevel", "loud"), "there are DEBUG, INFO, WARNING, ERROR"),
        (("loglevel", "INFO", "--worker", "decode-9"), "there are bootstrap, prefill-0, decode-0, decode-1, gateway"),
        (("rooms", "--worker", "bootstrap"), "bootstrap is no worker"),
        (("rooms", "abort", "7"), "no room 7"),
    ],
)
def test_wrong_names_are_told_what_there_is(system: System, words: tuple[str, ...], wanted: str) -> None:
    found = tandem(system, *words)
    assert found.returncode in (1, 2)
    assert wanted in found.stderr


@pytest.mark.parametrize("words", [("rooms",), ("config",), ("top",), ("loglevel", "INFO"), ("set-policy", "random")])
def test_without_a_system_they_say_so(words: tuple[str, ...]) -> None:
    found = tandem(None, *words)
    assert found.returncode == 2
    assert "tandem up" in found.stderr


def completed(system: System | None, line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line."""
    program = folder / "tandem"
    program.write_text("from tandem.cli.__main__ import main\n\nmain()\n")
    words = line.split(" ")
    state = str(system.folder / "state.json") if system else "no-such-folder/up.json"
    found = subprocess.run(
        [sys.executable, str(program)],
        env=environment(
            TANDEM_CLI_STATE_FILE=state,
            _TANDEM_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(words) - 1),
        ),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    assert found.stderr == ""
    return found.stdout.split()


def test_the_shell_completes_what_runs(system: System, tmp_path: Path) -> None:
    assert completed(system, "tandem drain de", tmp_path) == ["decode-0", "decode-1"]
    assert completed(system, "tandem config --worker g", tmp_path) == ["gateway"]
    assert completed(system, "tandem set-policy l", tmp_path) == ["least_load", "least_cost"]
    assert completed(None, "tandem drain ", tmp_path) == []


def test_completion_can_be_installed(tmp_path: Path) -> None:
    program = tmp_path / "tandem"
    program.write_text(f"#!{sys.executable}\nfrom tandem.cli.__main__ import main\n\nmain()\n")
    program.chmod(0o755)
    shown = subprocess.run(
        ["bash", "-c", f"{program} --show-completion; true"], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert "_TANDEM_COMPLETE=complete_bash" in shown.stdout
    assert "complete -o default -F" in shown.stdout
