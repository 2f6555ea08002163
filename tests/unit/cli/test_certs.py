"""`tandem certs`: whole sets only, keys that only their owner reads, and nothing overwritten unasked."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from tandem.cli import certs
from tandem.cli.__main__ import app
from tandem.core.errors import TandemError


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(folder: Path, name: str) -> x509.Certificate:
    """A member's."""
    return x509.load_pem_x509_certificate((folder / name / "cert.pem").read_bytes())


def names_of(cert: x509.Certificate) -> set[str]:
    """Its host names and addresses."""
    found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_each_service_gets_its_own_and_the_key_of_the_authority_is_nowhere(tmp_path: Path) -> None:
    certs.make(tmp_path, ["gpu1.example", "10.0.0.7"], 30)
    found = files(tmp_path)
    members = ("bootstrap", "gateway", "prefill", "decode", "unified", "client")
    assert set(found) == {f"{name}/{file}" for name in members for file in ("ca.pem", "cert.pem", "key.pem")}
    assert len({found[f"{name}/ca.pem"] for name in members}) == 1
    assert len({found[f"{name}/key.pem"] for name in members}) == 6
    for name in members:
        assert stat.S_IMODE((tmp_path / name / "key.pem").stat().st_mode) == 0o600
    assert {"prefill", "worker", "localhost", "127.0.0.1", "gpu1.example", "10.0.0.7"} <= names_of(
        certificate(tmp_path, "prefill")
    )
    assert "worker" not in names_of(certificate(tmp_path, "gateway"))


def test_the_client_serves_nothing(tmp_path: Path) -> None:
    certs.make(tmp_path, [], 30)
    cert = certificate(tmp_path, "client")
    uses = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        names_of(cert)


def test_what_is_there_stays_unless_it_is_asked_for(tmp_path: Path) -> None:
    certs.make(tmp_path, [], 365)
    before = files(tmp_path)
    with pytest.raises(TandemError, match="is there already"):
        certs.make(tmp_path, [], 365)
    assert CliRunner().invoke(app, ["certs", str(tmp_path), "--keep"]).exit_code == 0
    assert files(tmp_path) == before
    certs.make(tmp_path, [], 365, force=True)
    assert not set(files(tmp_path).values()) & set(before.values())


@pytest.mark.parametrize("lost", ["decode/key.pem", "gateway/cert.pem", "client/ca.pem"])
def test_half_a_set_is_made_anew_by_keep(tmp_path: Path, lost: str) -> None:
    certs.make(tmp_path, [], 365)
    (tmp_path / lost).unlink()
    assert not certs.usable(tmp_path)
    assert CliRunner().invoke(app, ["certs", str(tmp_path), "--keep"]).exit_code == 0
    assert certs.usable(tmp_path)


def test_two_sets_mixed_are_none(tmp_path: Path) -> None:
    certs.make(tmp_path / "a", [], 365)
    certs.make(tmp_path / "b", [], 365)
    (tmp_path / "a/decode/cert.pem").write_bytes((tmp_path / "b/decode/cert.pem").read_bytes())
    assert not certs.usable(tmp_path / "a")
    assert certs.usable(tmp_path / "b")


def test_what_ends_soon_is_not_good(tmp_path: Path) -> None:
    certs.make(tmp_path, [], 60)
    now = datetime.now(UTC)
    assert certs.usable(tmp_path, now + timedelta(days=29))
    assert not certs.usable(tmp_path, now + timedelta(days=31))


@pytest.mark.parametrize("name", ["", "two words", "bücher.example"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TandemError, match="neither a host name"):
        certs.make(tmp_path, [name], 30)
    assert not files(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TandemError, match="cannot write"):
        certs.make(tmp_path / "file", [], 30)
