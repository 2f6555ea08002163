"""The operator's commands as processes, against a system in this process, with and without certificates."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem.rpc.credentials import TlsSettings
from tests.support.certificates import Authority
from tests.support.settings import environment
from tests.support.system.inside import Inside, system_inside

SLOW = {"model": "tandem-tiny", "prompt": "hello", "max_tokens": 4000, "ignore_eos": True}
NAMES = ["bootstrap", "prefill-0", "decode-0", "gateway"]
WAIT_S = 60

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed; fails if the command did."""
        assert self.code == 0, self.err
        return json.loads(self.out)


async def tandem(*words: str, **env: str) -> Ended:
    """Runs a command; this loop goes on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.cli", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**{"COLUMNS": "200", "TANDEM_CLI_STATE_FILE": "no-such-folder/up.json", **env}),
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    return Ended(process.returncode or 0, out.decode(), err.decode())


class Said(logging.Handler):
    """Waits for a text in a log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.event.set()


@pytest.fixture(autouse=True)
def _same_level_after():
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
async def system(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    """Without certificates; decode takes its time."""
    monkeypatch.setenv("TANDEM_MOCK_DECODE_US_PER_STEP", "20000")
    async with system_inside() as inside:
        yield inside


async def slow_request(system: Inside) -> tuple[asyncio.Task[Any], dict[str, Any]]:
    """A request that runs for minutes, and its room as `tandem rooms --all` has it once decode generates."""
    asking = asyncio.create_task(system.http.post("/v1/completions", json=SLOW, headers={"X-Request-Id": "slow-1"}))
    async with asyncio.timeout(WAIT_S):
        while True:
            found = (await tandem("rooms", "--all", "--json", "--admin", system.admin)).json()
            if any(room["phase"] == "ROOM_PHASE_DECODING" for room in found["rooms"]):
                return asking, found


async def test_a_slow_request_is_seen_and_ended(system: Inside) -> None:
    asking, found = await slow_request(system)
    [room] = found["rooms"]
    assert (room["request_id"], room["attempt"], found["total"]) == ("slow-1", 1, 1)
    assert (room["prefill"]["worker_id"], room["decode"]["worker_id"]) == ("prefill-0", "decode-0")
    assert sorted(found["workers"]) == ["decode-0", "prefill-0"]
    plain = await tandem("rooms", "--admin", system.admin)
    assert "slow-1" in plain.out
    assert "Rooms in flight: 1." in plain.out
    ended = await tandem("rooms", "abort", room["room"], "--admin", system.admin)
    assert (ended.code, ended.out) == (0, f"{room['room']}: ended, was decoding, request slow-1\n")
    response = await asyncio.wait_for(asking, WAIT_S)
    assert response.status_code == 499
    assert "An operator gave the request up." in response.text
    again = await tandem("rooms", "abort", room["room"], "--admin", system.admin)
    assert again.code == 2
    assert "no room" in again.err
    assert (await tandem("rooms", "--json", "--admin", system.admin)).json()["rooms"] == []


async def test_a_leg_can_be_ended_on_its_worker(system: Inside) -> None:
    asking, found = await slow_request(system)
    room = found["rooms"][0]["room"]
    assert (await tandem("rooms", "abort", room, "--worker", "decode-0", "--admin", system.admin)).code == 0
    assert (await asyncio.wait_for(asking, WAIT_S)).status_code == 499
    again = await tandem("rooms", "abort", room, "--worker", "decode-0", "--admin", system.admin)
    assert again.code == 2
    assert "decode-0 has no room" in again.err


async def test_settings_of_every_service_without_secrets(system: Inside) -> None:
    found = await tandem("config", "--json", "--admin", system.admin)
    services = found.json()["services"]
    assert list(services) == NAMES
    assert services["gateway"]["settings"]["TANDEM_GATEWAY_API_KEYS"] == "********"
    assert services["decode-0"]["settings"]["TANDEM_MOCK_DECODE_US_PER_STEP"] == "20000.0"
    assert services["prefill-0"]["settings"]["TANDEM_PREFILL_WORKER_ID"] == "prefill-0"
    assert "TANDEM_TLS_ADMIN_IDENTITIES" in services["bootstrap"]["settings"]
    assert "sesame" not in found.out
    one = await tandem("config", "--worker", "decode-0", "--admin", system.admin)
    assert one.out.startswith("# decode-0, log level ")
    assert "TANDEM_GATEWAY" not in one.out


async def test_log_levels_change_for_a_while_or_for_good(
    system: Inside, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned = Said("time is over")
    monkeypatch.setattr(logging.getLogger("tandem.audit"), "handlers", [returned])
    logging.getLogger().setLevel("INFO")
    done = await tandem("loglevel", "warning", "--for-s", "0.2", "--worker", "decode-0", "--admin", system.admin)
    assert done.out == "decode-0: INFO -> WARNING, in 0.2 s INFO again\n"
    await asyncio.wait_for(returned.event.wait(), WAIT_S)
    assert logging.getLogger().level == logging.INFO
    [line] = [one for one in caplog.messages if "log level: INFO -> WARNING for 200 ms" in one]
    assert line.startswith("this machine at 127.0.0.1:")
    everyone = await tandem("loglevel", "ERROR", "--all", "--json", "--admin", system.admin)
    assert list(everyone.json()["services"]) == NAMES
    assert logging.getLogger().level == logging.ERROR


async def test_wrong_names_are_told_what_there_is(system: Inside) -> None:
    for words, wanted in (
        (("set-policy", "best"), "random, round_robin, least_load"),
        (("loglevel", "loud"), "DEBUG, INFO, WARNING, ERROR"),
        (("config", "--worker", "decode-9"), "bootstrap, prefill-0, decode-0, gateway"),
        (("rooms", "--worker", "gateway"), "gateway is no worker"),
    ):
        found = await tandem(*words, "--admin", system.admin)
        assert found.code != 0
        assert wanted in found.err, words


async def test_a_policy_is_set_for_one_role(system: Inside) -> None:
    done = await tandem("set-policy", "random", "--role", "prefill", "--admin", system.admin)
    assert done.out == "prefill: least_load -> random\n"
    both = await tandem("set-policy", "round_robin", "--json", "--admin", system.admin)
    assert both.json() == {
        "prefill": {"before": "random", "after": "round_robin"},
        "decode": {"before": "least_load", "after": "round_robin"},
        "unified": {"before": "least_load", "after": "round_robin"},
    }


async def test_top_prints_one_frame_into_a_pipe(system: Inside) -> None:
    found = await tandem("top", "--once", "--interval-s", "0.2", "--admin", system.admin, COLUMNS="80")
    assert found.code == 0, found.err
    assert "decode-0" in found.out
    assert "rooms 0" in found.out
    assert all(len(line) <= 80 for line in found.out.splitlines())
    line = await tandem("top", "--once", "--json", "--admin", system.admin)
    assert [worker["worker"]["worker_id"] for worker in line.json()["workers"]] == ["decode-0", "prefill-0"]


async def test_top_is_left_with_q_and_leaves_the_terminal_as_it_was(system: Inside) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.cli", "top", "--interval-s", "0.2", "--admin", system.admin),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm"),
    )
    screen, drawn = bytearray(), asyncio.Event()

    def read() -> None:
        screen.extend(os.read(master, 65_536))
        # In the second frame there are rates.
        if b"prefill-0" in screen and b"tokens 0.0/s" in screen:
            drawn.set()

    asyncio.get_running_loop().add_reader(master, read)
    try:
        await asyncio.wait_for(drawn.wait(), WAIT_S)
        assert termios.tcgetattr(slave) != before, "keys come one by one"
        os.write(master, b"xq")
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 0, screen.decode()
        assert termios.tcgetattr(slave) == before
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
        os.close(slave)


async def test_who_does_not_answer_is_named_and_others_are_shown(system: Inside, tmp_path: Path) -> None:
    rows = [
        {"name": "decode-0", "kind": "decode", "stage": "ready", "address": "127.0.0.1:1"},
        {"name": "prefill-0", "kind": "prefill", "stage": "starting", "address": ""},
        {"name": "gateway", "kind": "gateway", "stage": "ready", "address": ""},
    ]
    state = {"pid": 1, "model": "", "url": "", "admin": system.admin, "bootstrap": "", "ready": True, "processes": rows}
    path = tmp_path / "up.json"
    path.write_text(json.dumps(state))
    found = await tandem("config", TANDEM_CLI_STATE_FILE=str(path))
    assert found.code == 1
    assert "# gateway, log level" in found.out
    assert "decode-0 does not answer" in found.err
    assert "prefill-0 does not run" in found.err


def in_environment(tls: TlsSettings) -> dict[str, str]:
    """Certificates as a process takes them."""
    files = {"cert": tls.cert_file, "key": tls.key_file, "ca": tls.ca_file}
    return {f"TANDEM_TLS_{name.upper()}_FILE": str(path) for name, path in files.items()}


@pytest.mark.openssl
async def test_with_certificates_only_operators_change_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    service = authority.issue("service", ["IP:127.0.0.1"])
    for name, value in in_environment(service).items():
        monkeypatch.setenv(name, value)
    admin, other = in_environment(authority.issue("tandem-admin")), in_environment(service)
    async with system_inside(service) as system:
        logging.getLogger().setLevel("INFO")
        for words in (
            ("set-policy", "random"),
            ("drain", "decode-0"),
            ("loglevel", "DEBUG", "--all"),
            ("rooms", "abort", "5"),
            ("rooms", "abort", "5", "--worker", "decode-0"),
        ):
            refused = await tandem(*words, "--admin", system.admin, **other)
            assert refused.code != 0
            assert "says service" in refused.err, words
            assert "allowed is tandem-admin (TANDEM_TLS_ADMIN_IDENTITIES)" in refused.err
        assert logging.getLogger().level == logging.INFO
        assert list((await tandem("config", "--json", "--admin", system.admin, **other)).json()["services"]) == NAMES
        assert (await tandem("set-policy", "random", "--admin", system.admin, **admin)).code == 0
        assert (await tandem("loglevel", "ERROR", "--all", "--admin", system.admin, **admin)).code == 0
        drained = await tandem("drain", "decode-0", "--json", "--admin", system.admin, **admin)
        assert drained.json() == {"worker_id": "decode-0", "draining": True}
        missing = await tandem("rooms", "abort", "5", "--admin", system.admin, **admin)
        assert "no room 5 of this gateway" in missing.err
    audit = [record.getMessage() for record in caplog.records if record.name == "tandem.audit"]
    assert any(
        line.startswith("tandem-admin at ") and "policy of decode: least_load -> random" in line for line in audit
    )
    assert any(line.endswith("worker decode-0: takes rooms -> draining") and "tandem-admin" in line for line in audit)
    assert sum("refused:" in line for line in audit) == 8, "one each, and four services for the log level"
