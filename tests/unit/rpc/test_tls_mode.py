"""TANDEM_TLS: what each of its values makes of the certificates, and where a process may then go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import PLAIN, Credentials, TlsMode, TlsSettings
from tandem.rpc.server import GrpcServer

FILES = ("TANDEM_TLS_CERT_FILE", "TANDEM_TLS_KEY_FILE", "TANDEM_TLS_CA_FILE")
OFF = Credentials.from_settings(TlsSettings.load(mode=TlsMode.OFF))
LOCAL = ("127.0.0.1:5", "127.8.9.10:5", "[::1]:5", "localhost:5", "unix:/run/s")
REMOTE = ("10.0.0.7:5", "0.0.0.0:5", "[::]:5", "[2001:db8::7]:5", "bootstrap:5", "localhost.example:5")


def refusal(load: pytest.CaptureFixture[str]) -> str:
    """What loading the settings of this environment ends with, in one line."""
    with pytest.raises(SystemExit) as ended:
        TlsSettings.load()
    assert ended.value.code == 2
    (line,) = load.readouterr().err.splitlines()
    return line


def test_the_environment_chooses_and_auto_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TlsSettings.load().mode is TlsMode.AUTO
    monkeypatch.setenv("TANDEM_TLS", "off")
    assert TlsSettings.load().mode is TlsMode.OFF
    assert TlsSettings.load().shown()["TANDEM_TLS"] == "off"


def test_another_value_is_refused_with_those_that_are_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_TLS", "on")
    line = refusal(capsys)
    assert line.startswith("setting mode (TANDEM_TLS): ")
    assert line.endswith("given 'on'; allowed: auto, off, required")


@pytest.mark.parametrize("given", [0, 1, 3])
def test_off_ignores_certificates_and_does_not_even_read_them(
    given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_TLS", "off")
    for name in FILES[:given]:
        monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    found = Credentials.from_settings(TlsSettings.load())
    assert not found.secure
    assert (found.server(), found.channel()) == (None, None)


@pytest.mark.parametrize("given", [0, 1])
def test_required_without_all_certificates_is_refused(
    given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_TLS", "required")
    for name in FILES[:given]:
        monkeypatch.setenv(name, str(tmp_path / "cert.pem"))
    assert "TANDEM_TLS=required needs TANDEM_TLS_CERT_FILE, _KEY_FILE and _CA_FILE: set all of them" in refusal(capsys)


def test_required_with_certificates_speaks_tls(tmp_path: Path) -> None:
    path = tmp_path / "some.pem"
    path.write_text("some")
    settings = TlsSettings.load(mode=TlsMode.REQUIRED, cert_file=path, key_file=path, ca_file=path)
    assert Credentials.from_settings(settings).secure


@pytest.mark.parametrize("address", LOCAL)
def test_off_lets_a_process_go_to_its_own_machine(address: str) -> None:
    OFF.check_bind(address)
    OFF.check_dial(address)


@pytest.mark.parametrize("address", REMOTE)
async def test_off_keeps_a_process_from_going_beyond_and_says_what_is_allowed(address: str) -> None:
    text = (
        f"address '{address}' is not on loopback, and TANDEM_TLS=off allows only localhost, 127.0.0.0/8, ::1 and unix "
        "sockets: set TANDEM_TLS=auto and certificates to go beyond"
    )
    for attempt in (GrpcServer(credentials=OFF).bind, lambda where: open_channel(where, OFF)):
        with pytest.raises(TandemError) as refused:
            attempt(address)
        error = refused.value
        assert (error.reason, error.field, error.message) == (ErrorReason.INVALID_ARGUMENT, "address", text)


def test_off_is_stronger_than_allow_insecure() -> None:
    insecure = Credentials.from_settings(TlsSettings.load(mode=TlsMode.OFF, allow_insecure=True))
    with pytest.raises(TandemError, match="TANDEM_TLS=off allows only"):
        insecure.check_bind("0.0.0.0:5")


@pytest.mark.parametrize("address", REMOTE)
def test_auto_without_certificates_dials_anywhere_and_listens_on_loopback(address: str) -> None:
    PLAIN.check_dial(address)
    with pytest.raises(TandemError, match="is not on loopback: set TANDEM_TLS_CERT_FILE"):
        PLAIN.check_bind(address)
