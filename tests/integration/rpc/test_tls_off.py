"""TANDEM_TLS=off: the system works on loopback whatever certificates are given, and no process of it goes beyond."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, RoomId
from tandem.core.room.events import Phase
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.settings import MockSettings
from tandem.engine.rank.settings import RankSettings
from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import add_services
from tandem.engine.worker.settings import EngineName
from tandem.gateway.app import Gateway
from tandem.gateway.settings import GatewaySettings
from tandem.prefill.settings import PrefillSettings
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.run import Stop
from tests.support.gateway.cluster import MODEL_PATH, encoder
from tests.support.rank.pair import pair, reached
from tests.support.settings import environment
from tests.support.tracing.system import services_here

pytestmark = pytest.mark.timeout(120)

REMOTE = "192.0.2.7:5"
"""Of a network that is for documentation: nobody answers there."""
ALLOWED = "is not on loopback, and TANDEM_TLS=off allows only localhost, 127.0.0.0/8, ::1 and unix sockets"
OFF = {"TANDEM_TLS": "off"} | {f"TANDEM_TLS_{name}_FILE": "no-such.pem" for name in ("CERT", "KEY", "CA")}


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS is off, and certificates are given that can't be read."""
    for name, value in OFF.items():
        monkeypatch.setenv(name, value)


async def ended(*words: str, **env: str) -> tuple[int | None, str]:
    """Exit code and stderr of a process that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words), env=environment(**OFF, **env), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, said.decode()


async def test_a_system_on_loopback_answers() -> None:
    async with services_here() as here:
        answer = await here.ask()
    assert answer.status_code == 200, answer.text


async def test_bootstrap_does_not_listen_beyond() -> None:
    code, said = await ended("tandem.bootstrap", TANDEM_BOOTSTRAP_HOST="0.0.0.0", TANDEM_BOOTSTRAP_PORT="0")
    assert code == ExitCode.BAD_SETTINGS
    assert f"address '0.0.0.0:0' {ALLOWED}" in said


async def test_the_command_line_does_not_dial_beyond() -> None:
    code, said = await ended("tandem.cli", "workers", "--bootstrap", REMOTE)
    assert code == ExitCode.BAD_SETTINGS
    assert said.startswith(f"tandem: address '{REMOTE}' {ALLOWED}")
    code, said = await ended("tandem.rpc.probe", REMOTE)
    assert code == 1
    assert said.startswith(f"INVALID_ARGUMENT: address '{REMOTE}' {ALLOWED}")


@pytest.mark.parametrize(
    ("fields", "address"),
    [({"host": "0.0.0.0"}, "0.0.0.0:0"), ({"bootstrap_address": REMOTE}, REMOTE)],
    ids=["listens", "dials"],
)
async def test_a_worker_neither_listens_nor_dials_beyond(
    fields: dict[str, str], address: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = MockEngine(MockSettings(), Role.PREFILL)
    settings = PrefillSettings.load(worker_id="p0", engine=EngineName.MOCK, model_path=str(MODEL_PATH), **fields)
    with caplog.at_level(logging.ERROR):
        code = await WorkerHost(Role.PREFILL, settings, engine, add_services).run(Stop())
    assert code == ExitCode.FAILED
    assert f"address '{address}' {ALLOWED}" in caplog.text


def gateway(bootstrap: str = "127.0.0.1:1", admin: str = "127.0.0.1:0") -> Gateway:
    """One that has not started."""
    addresses = {"bootstrap_address": bootstrap, "admin_address": admin}
    return Gateway(GatewaySettings.load(port=0, model_path=str(MODEL_PATH), **addresses), TlsSettings.load(), encoder())


async def test_a_gateway_neither_listens_nor_dials_beyond() -> None:
    with pytest.raises(TandemError, match=f"address '{REMOTE}' {ALLOWED}"):
        gateway(bootstrap=REMOTE)
    one = gateway(admin=REMOTE)
    with pytest.raises(TandemError, match=f"address '{REMOTE}' {ALLOWED}"):
        await one.start()
    await one.stop()


async def test_a_rank_does_not_listen_beyond() -> None:
    ranks = pair(prefill=RankSettings.load(providers="tcp", bind_host="0.0.0.0"))
    with pytest.raises(TandemError, match=f"address '0.0.0.0:0' {ALLOWED}"):
        await ranks.__aenter__()


async def test_a_rank_does_not_dial_beyond_and_its_room_fails_as_one_without_a_link() -> None:
    async with pair() as ranks:
        ranks.address = REMOTE
        await ranks.open(7)
        receiver = ranks.decode.agent.receiver(RoomId(7))
        await reached(receiver, Phase.FAILED)
    assert receiver.why is not None
    assert receiver.why.reason is ErrorReason.LINK_LOST
    assert f"address '{REMOTE}' {ALLOWED}" in receiver.why.message
