"""API keys: their file, its changes while the gateway runs, and what the log tells of them."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from tandem.core import api_keys
from tandem.core.errors import TandemError
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.watched_file import CHECK_INTERVAL_S
from tandem.gateway.settings import GatewaySettings
from tests.support.gateway.doubles import AppLimits, NotingWorkers, http_client

KEY, OTHER = "tk_first", "tk_second"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """At 0."""
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """With the key of alice."""
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\n{api_keys.line_of('alice', KEY)}  # on holiday\n", encoding="utf-8")
    return path


def test_a_key_of_the_file_has_a_name(file: Path, clock: Clock) -> None:
    ring = KeyRing((), file, clock)
    assert not ring.open
    assert ring.owner_of(KEY) == "alice"
    assert ring.owner_of(OTHER) is None
    assert ring.owner_of("") is None
    assert KEY not in file.read_text(encoding="utf-8")


def test_keys_of_settings_and_file_both_open(file: Path, clock: Clock) -> None:
    ring = KeyRing((OTHER,), file, clock)
    assert [ring.owner_of(key) for key in (KEY, OTHER)] == ["alice", "key-1"]


def test_without_keys_it_is_open_and_with_an_empty_file_it_is_shut(tmp_path: Path, clock: Clock) -> None:
    empty = tmp_path / "keys"
    empty.touch()
    assert KeyRing().open
    assert not KeyRing((), empty, clock).open


def test_a_change_is_seen_without_a_restart_and_only_after_a_second(file: Path, clock: Clock) -> None:
    ring = KeyRing((), file, clock)
    file.write_text(api_keys.line_of("bob", OTHER), encoding="utf-8")
    assert ring.owner_of(OTHER) is None
    clock.now += CHECK_INTERVAL_S
    assert ring.owner_of(OTHER) == "bob"
    assert ring.owner_of(KEY) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"alice:tk_pasted_by_mistake", "line 1 is not NAME:SHA256"),
        (b"a:" + b"0" * 64 + b"\na:" + b"1" * 64, "line 2 names a a second time"),
        (b"a b:" + b"0" * 64, "line 1 is not"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * (1 << 20) + b"#", "longer than"),
        (None, "No such file"),
    ],
    ids=["key", "twice", "name", "encoding", "length", "gone"],
)
def test_a_bad_file_leaves_the_keys_and_is_logged_once(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: bytes | None, told: str
) -> None:
    ring = KeyRing((), file, clock)
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    for _ in range(3):
        clock.now += CHECK_INTERVAL_S
        assert ring.owner_of(KEY) == "alice"
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert told in errors[0]
    assert "tk_pasted_by_mistake" not in caplog.text
    file.write_text(api_keys.line_of("bob", OTHER), encoding="utf-8")
    clock.now += CHECK_INTERVAL_S
    assert ring.owner_of(OTHER) == "bob"


def test_a_bad_file_at_start_is_an_error(file: Path, clock: Clock) -> None:
    file.write_text("nonsense", encoding="utf-8")
    with pytest.raises(TandemError, match="line 1"):
        KeyRing((), file, clock)
    with pytest.raises(FileNotFoundError):
        KeyRing((), file.with_name("none"), clock)


def test_names_are_checked() -> None:
    with pytest.raises(TandemError, match="1 to 64"):
        api_keys.line_of("a:b", KEY)


def test_no_file_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_GATEWAY_API_KEYS_FILE", "")
    assert GatewaySettings.load(model_path="m").api_keys_file is None


async def test_logs_name_the_owner_and_never_the_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with http_client(NotingWorkers(), AppLimits(keys=KeyRing((), file))) as client:
        answers: list[httpx.Response] = [
            await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) for key in (KEY, OTHER)
        ]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert "by the key alice" in caplog.text
    assert KEY not in caplog.text
    assert OTHER not in caplog.text
