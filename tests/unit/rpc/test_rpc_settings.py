"""The settings base: environment, ranges, secrets, and one clear line for a bad value."""

from __future__ import annotations

from enum import Enum

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from tandem.bootstrap.settings import BootstrapSettings
from tandem.core.errors import TandemError
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.settings import Settings


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Sample(Settings):
    model_config = SettingsConfigDict(env_prefix="TANDEM_SAMPLE_")

    port: int = Field(default=1, ge=0, le=65535)
    wait_ms: int = Field(default=5, gt=0)
    colour: Colour = Colour.RED
    key: SecretStr = SecretStr("")
    short_key: SecretStr = Field(default=SecretStr("1234"), min_length=4)


def test_the_environment_is_read_and_overrides_win(monkeypatch):
    monkeypatch.setenv("TANDEM_SAMPLE_PORT", "7")
    monkeypatch.setenv("TANDEM_SAMPLE_COLOUR", "blue")
    assert (Sample.load().port, Sample.load().colour) == (7, Colour.BLUE)
    assert Sample.load(port=8).port == 8


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Sample.load().port = 5  # type: ignore[misc]


def test_description_masks_secrets():
    text = Sample.load(key=SecretStr("hunter2")).describe()
    assert "hunter2" not in text
    assert text.splitlines()[:4] == [
        "TANDEM_SAMPLE_PORT=1",
        "TANDEM_SAMPLE_WAIT_MS=5",
        "TANDEM_SAMPLE_COLOUR=red",
        "TANDEM_SAMPLE_KEY=********",
    ]


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("PORT", "70000", ("setting port (TANDEM_SAMPLE_PORT)", "given '70000'", "allowed: 0..65535")),
        ("PORT", "abc", ("TANDEM_SAMPLE_PORT", "valid integer")),
        ("WAIT_MS", "0", ("TANDEM_SAMPLE_WAIT_MS", "allowed: > 0")),
        ("COLOUR", "green", ("TANDEM_SAMPLE_COLOUR", "given 'green'", "allowed: red, blue")),
    ],
)
def test_a_bad_value_gives_one_clear_line_and_exit_code_2(monkeypatch, capsys, name, value, parts):
    monkeypatch.setenv(f"TANDEM_SAMPLE_{name}", value)
    with pytest.raises(SystemExit) as caught:
        Sample.load()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line


def test_a_bad_secret_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_SAMPLE_SHORT_KEY", "xyz")
    with pytest.raises(SystemExit):
        Sample.load()
    err = capsys.readouterr().err
    assert "TANDEM_SAMPLE_SHORT_KEY" in err
    assert "xyz" not in err


def test_certificates_belong_together(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TANDEM_TLS_CERT_FILE", str(tmp_path / "cert.pem"))
    with pytest.raises(SystemExit):
        TlsSettings.load()
    assert "belong together" in capsys.readouterr().err


def test_a_missing_certificate_is_named(tmp_path):
    path = tmp_path / "none.pem"
    settings = TlsSettings.load(cert_file=path, key_file=path, ca_file=path)
    with pytest.raises(TandemError, match=r"none\.pem \(TANDEM_TLS_CERT_FILE\)"):
        Credentials.from_settings(settings)


def test_credentials_show_no_key():
    assert "secret" not in repr(Credentials(b"chain", b"secret", b"ca"))


def test_bootstrap_settings(monkeypatch):
    settings = BootstrapSettings.load()
    assert settings.address.startswith("127.0.0.1:")
    assert settings.lease_ttl_ms == 1500
    assert BootstrapSettings.load(host="::1", port=5).address == "[::1]:5"


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.7:5", "worker"), ("[::1]:5", "worker"), ("bootstrap:5", ""), ("localhost:5", ""), ("unix:/x", "")],
)
def test_a_server_name_is_for_those_dialled_by_address(address, name):
    assert Credentials(server_name="worker").name_of(address) == name
