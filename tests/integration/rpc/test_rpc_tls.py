"""mTLS between services: who is let in, who is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tandem.cli import certs
from tandem.rpc.credentials import PLAIN, Credentials, TlsSettings
from tandem.rpc.probe import why_not_ready
from tandem.rpc.server import GrpcServer


def credentials(folder: Path, name: str, server_name: str = "") -> Credentials:
    """Of one member."""
    own = folder / name
    return Credentials.from_settings(
        TlsSettings.load(
            cert_file=own / "cert.pem", key_file=own / "key.pem", ca_file=own / "ca.pem", server_name=server_name
        )
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of this cluster."""
    folder = tmp_path_factory.mktemp("ours")
    certs.make(folder, [], 30)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another cluster, for the same names."""
    folder = tmp_path_factory.mktemp("theirs")
    certs.make(folder, [], 30)
    return folder


@asynccontextmanager
async def serving(given: Credentials) -> AsyncIterator[str]:
    """The port of a server on loopback that is ready."""
    server = GrpcServer(credentials=given)
    port = server.bind("127.0.0.1:0").rpartition(":")[2]
    await server.start()
    await server.set_ready(True)
    try:
        yield port
    finally:
        await server.stop(0)


async def test_members_speak_to_each_other(ours: Path) -> None:
    async with serving(credentials(ours, "decode")) as port:
        for name in ("bootstrap", "gateway", "prefill", "decode", "client"):
            assert await why_not_ready(f"localhost:{port}", credentials(ours, name)) == ""
            assert await why_not_ready(f"127.0.0.1:{port}", credentials(ours, name)) == ""


async def test_a_client_of_another_authority_or_of_none_is_refused(ours: Path, theirs: Path) -> None:
    trusting = credentials(theirs, "client")
    stranger = Credentials(trusting.cert_chain, trusting.private_key, credentials(ours, "client").ca)
    async with serving(credentials(ours, "bootstrap")) as port:
        for other in (stranger, trusting, PLAIN):
            assert (await why_not_ready(f"localhost:{port}", other, timeout_ms=2000)).startswith(
                ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            )


async def test_a_server_of_another_authority_is_not_believed(ours: Path, theirs: Path) -> None:
    async with serving(credentials(theirs, "bootstrap")) as port:
        assert await why_not_ready(f"localhost:{port}", credentials(ours, "client"), timeout_ms=2000)


async def test_an_address_has_to_be_that_of_a_worker_where_a_name_is_set(ours: Path) -> None:
    asking = credentials(ours, "gateway", server_name="worker")
    async with serving(credentials(ours, "prefill")) as worker, serving(credentials(ours, "bootstrap")) as other:
        assert await why_not_ready(f"127.0.0.1:{worker}", asking) == ""
        assert await why_not_ready(f"127.0.0.1:{other}", asking, timeout_ms=2000)
        # Who is dialled by name shows that name.
        assert await why_not_ready(f"localhost:{other}", asking) == ""
