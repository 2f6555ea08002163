"""Whom commands believe over HTTPS, and what they say where they can't."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tandem.cli import certs
from tandem.cli.authorities import trust, untrusted
from tandem.core.errors import ErrorReason, TandemError


def test_plain_http_needs_nobody(tmp_path: Path) -> None:
    assert trust("http://127.0.0.1:8000", tmp_path / "is-not-there.pem") is None


@pytest.mark.parametrize(
    ("text", "why"), [(None, "No such file"), ("nothing", "no certificate"), ("", "no certificate")]
)
def test_a_file_that_cant_be_used_is_named_with_what_it_has_to_be(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TandemError, match="PEM file with certificates") as refused:
        trust("HTTPS://gateway", path)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT
    for part in ("--ca (TANDEM_CLI_CA_FILE)", str(path), why):
        assert part in refused.value.message


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A client's side of a handshake in memory. Raises what it raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asked = client.wrap_bio(to_client, to_server, server_hostname=name)
    told = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asked, told):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    asked.do_handshake()


def test_only_an_unknown_authority_is_a_case_for_the_option(tmp_path: Path) -> None:
    for authority in ("known", "unknown"):
        certs.make(tmp_path / authority, [], 30)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "known/gateway/cert.pem", tmp_path / "known/gateway/key.pem")
    right, wrong = (trust("https://x", tmp_path / one / "client/ca.pem") for one in ("known", "unknown"))
    assert right is not None
    assert wrong is not None
    handshake(server, right, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError) as stranger:
        handshake(server, wrong, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError) as elsewhere:
        handshake(server, right, "example.org")
    wrapped = OSError("what a client makes of it")
    wrapped.__cause__ = stranger.value
    assert "--ca (TANDEM_CLI_CA_FILE) names the PEM file" in untrusted(wrapped)
    assert untrusted(elsewhere.value) == ""
    assert untrusted(OSError("no such host")) == ""
