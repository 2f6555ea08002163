"""With mTLS, only certificates of operators may change something; anybody of the authority may look."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tandem.core.errors import ErrorReason
from tandem.rpc.client import open_channel
from tandem.rpc.control import Controlled, add_control
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.errors import from_rpc_error
from tandem.rpc.server import GrpcServer
from tandem.v1 import control_pb2, control_pb2_grpc
from tests.support.certificates import Authority

pytestmark = pytest.mark.openssl


@pytest.fixture(autouse=True)
def _same_level_after():
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Of this test."""
    return Authority(tmp_path)


@pytest.fixture
async def address(authority: Authority) -> AsyncIterator[str]:
    """A ControlService with the default identities, and "second" besides."""
    tls = authority.issue("decode", ["IP:127.0.0.1"], admin_identities=("tandem-admin", "second"))
    server = GrpcServer(credentials=Credentials.from_settings(tls))
    add_control(server, Controlled("decode", (tls,), "d0"))
    bound = server.bind("127.0.0.1:0")
    await server.start()
    yield bound
    await server.stop(0)


async def set_level(address: str, tls: TlsSettings) -> None:
    """As an operator would."""
    async with open_channel(address, Credentials.from_settings(tls)) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        answer = await stub.GetSettings(control_pb2.GetSettingsRequest(), timeout=20)
        assert answer.worker_id == "d0", "anybody may look"
        await stub.SetLogLevel(control_pb2.SetLogLevelRequest(level="ERROR"), timeout=20)


@pytest.mark.parametrize(
    ("name", "alternative"), [("tandem-admin", ()), ("anna", ("DNS:anna.example", "DNS:tandem-admin")), ("second", ())]
)
async def test_operators_may(
    address: str, authority: Authority, name: str, alternative: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger().setLevel("INFO")
    await set_level(address, authority.issue(name, alternative))
    assert logging.getLogger().level == logging.ERROR
    [line] = [record.getMessage() for record in caplog.records if record.name == "tandem.audit"]
    who = name if not alternative else "tandem-admin"
    assert line.startswith(f"{who} at 127.0.0.1:")
    assert line.endswith("log level: INFO -> ERROR")


@pytest.mark.parametrize(("name", "alternative"), [("gateway", ()), ("anna", ("DNS:gateway", "DNS:x.tandem-admin"))])
async def test_others_of_the_same_authority_may_not(
    address: str, authority: Authority, name: str, alternative: tuple[str, ...]
) -> None:
    logging.getLogger().setLevel("INFO")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await set_level(address, authority.issue(name, alternative))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert from_rpc_error(refused.value).reason is ErrorReason.FORBIDDEN
    assert "the certificate of the caller at 127.0.0.1:" in str(refused.value.details())
    shown = ", ".join(dict.fromkeys([name, *(one.removeprefix("DNS:") for one in alternative)]))
    assert f"says {shown}, allowed is second, tandem-admin" in str(refused.value.details())
    assert logging.getLogger().level == logging.INFO


async def test_without_a_certificate_nobody_gets_in(address: str) -> None:
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control_pb2_grpc.ControlServiceStub(channel).GetSettings(control_pb2.GetSettingsRequest(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
