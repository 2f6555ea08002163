"""A worker that is asked to take another role: what it refuses, and what it does with the rooms that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tandem.cli.services import Service
from tandem.cli.switching import switch_live
from tandem.core import version
from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerId
from tandem.engine.worker.worker_metrics import CHECKSUMS, CHUNK
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import PLAIN
from tandem.v1 import common_pb2, decode_pb2_grpc, session_pb2
from tests.support.tracing.system import Here, services_here

pytestmark = pytest.mark.timeout(120)

SLOW = {"decode_us_per_step": 20_000, "says_end": False}


def info_of(here: Here, worker_id: str) -> WorkerInfo:
    """As the gateway has it."""
    return here.gateway._pool.view.workers[WorkerId(worker_id)]


async def switch(here: Here, worker_id: str, role: Role) -> None:
    info = info_of(here, worker_id)
    await switch_live(Service(worker_id, info.role.value, info.address), PLAIN, role, 60)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - a worker has no event for each of these
            await asyncio.sleep(0.002)


async def test_it_finishes_the_rooms_that_it_has_and_comes_back_as_another_life() -> None:
    async with services_here(decodes=2, mock=SLOW) as here:
        asked = [asyncio.create_task(here.ask(f"story {number}", new_tokens=40)) for number in range(4)]
        await until(lambda: here.hosts["d0"]._open_rooms == 2)
        before = here.hosts["d0"].life
        await switch(here, "d0", Role.PREFILL)
        after = here.hosts["d0"].life
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert all(answer.json()["usage"]["completion_tokens"] == 40 for answer in answers)
        assert (after.worker_id, after.incarnation > before.incarnation) == (before.worker_id, True)
        assert here.hosts["d0"].role is Role.PREFILL
        shown = (await here.hosts["d0"]._scraped()).decode()
        assert CHUNK.name in shown
        assert CHECKSUMS.name not in shown, "that is decode's"


async def test_rooms_that_do_not_end_in_time_keep_it_as_it_is() -> None:
    async with services_here(decodes=2, mock=SLOW) as here:
        here.hosts["d0"]._settings = here.hosts["d0"]._settings.model_copy(update={"drain_timeout_ms": 50})
        asked = [asyncio.create_task(here.ask(f"story {number}", new_tokens=60)) for number in range(4)]
        await until(lambda: here.hosts["d0"]._open_rooms == 2)
        life = here.hosts["d0"].life
        with pytest.raises(TandemError, match="2 rooms were still open after 50 ms; it stays a decode worker") as late:
            await switch(here, "d0", Role.PREFILL)
        assert late.value.reason is ErrorReason.DEADLINE_EXCEEDED
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 4
        assert (here.hosts["d0"].life, here.hosts["d0"].draining) == (life, False)
        more = await asyncio.gather(*(here.ask(f"more {number}") for number in range(4)))
        assert [answer.status_code for answer in more] == [200] * 4
        assert here.hosts["d0"]._submitted > 2, "it takes rooms again"


async def test_one_change_at_a_time() -> None:
    async with services_here(decodes=3, mock=SLOW) as here:
        asked = [asyncio.create_task(here.ask(f"story {number}", new_tokens=40)) for number in range(3)]
        await until(lambda: here.hosts["d0"]._open_rooms == 1)
        first = asyncio.create_task(switch(here, "d0", Role.PREFILL))
        await until(lambda: here.hosts["d0"].draining)
        with pytest.raises(TandemError, match="the worker becomes one of prefill already") as refused:
            await switch(here, "d0", Role.UNIFIED)
        assert refused.value.reason is ErrorReason.DRAINING
        await first
        assert here.hosts["d0"].role is Role.PREFILL
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 3


async def test_a_worker_that_ends_meanwhile_says_so() -> None:
    async with services_here(decodes=2, mock=SLOW) as here:
        asked = asyncio.create_task(here.ask("story", new_tokens=40))
        await until(lambda: bool(_busy(here)))
        (busy,) = _busy(here)
        changing = asyncio.create_task(switch(here, busy, Role.PREFILL))
        await until(lambda: here.hosts[busy].draining)
        here.stops[1 + int(busy[1])].request("the test ends it")
        with pytest.raises(TandemError, match="the worker ends; it stays a decode worker"):
            await changing
        assert (await asked).status_code == 200


def _busy(here: Here) -> list[str]:
    return [name for name in ("d0", "d1") if here.hosts[name]._open_rooms]


async def test_who_knows_an_old_life_gets_no_room_in_the_new_one() -> None:
    """A gateway that has not heard of the change: its Session ends, and a new one in the old role is refused."""
    async with services_here(decodes=2) as here:
        info = info_of(here, "d0")
        async with open_channel(info.address, PLAIN) as channel:
            stub: Any = decode_pb2_grpc.DecodeServiceStub(channel)
            session = stub.Session()
            await session.write(_hello())
            assert (await session.read()).HasField("welcome")
            held = stub.WatchHeldPages(session_pb2.WatchHeldPagesRequest())
            assert await held.read()
            await switch(here, "d0", Role.PREFILL)
            async with asyncio.timeout(20):
                while not isinstance(message := await _read(session), str):
                    assert message.WhichOneof("message") == "batch"
                assert message.endswith(f"this life of {info.life} is over"), message
                assert (await held.code()).name in ("OK", "UNAVAILABLE")
            with pytest.raises(grpc.aio.AioRpcError, match="d0 is one of prefill now, not decode"):
                await stub.GetStatus(session_pb2.GetStatusRequest(), timeout=5)
            again = stub.Session()
            await again.write(_hello())
            with pytest.raises(grpc.aio.AioRpcError, match="d0 is one of prefill now, not decode"):
                await again.read()


async def _read(session: Any) -> Any:
    """A message; why the Session has ended, if it has."""
    try:
        return await session.read()
    except grpc.aio.AioRpcError as error:
        return str(error.details())


def _hello() -> session_pb2.SessionRequest:
    hello = session_pb2.SessionHello(gateway_id="old", version=convert.protocol_to_proto(version.CURRENT))
    return session_pb2.SessionRequest(hello=hello)


async def test_what_it_can_not_become(monkeypatch: pytest.MonkeyPatch) -> None:
    async with services_here(decodes=2) as here:
        engine = here.hosts["d0"].engine
        monkeypatch.setattr(type(engine), "roles", property(lambda _: frozenset({Role.DECODE, Role.PREFILL})))
        with pytest.raises(TandemError, match="d0 can't become a unified worker without a restart") as refused:
            await switch(here, "d0", Role.UNIFIED)
        assert refused.value.reason is ErrorReason.NOT_SUPPORTED

        async def stays(_: Any, role: Role) -> Any:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"not {role.value} now")

        monkeypatch.setattr(type(engine), "switch", stays)
        life = here.hosts["d0"].life
        with pytest.raises(TandemError, match="not prefill now"):
            await switch(here, "d0", Role.PREFILL)
        await until(lambda: here.hosts["d0"].life.incarnation > life.incarnation)
        assert here.hosts["d0"].role is Role.DECODE
        answers = await asyncio.gather(*(here.ask(f"more {number}") for number in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4


async def test_an_engine_that_breaks_over_it_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with services_here(decodes=2) as here:
        engine = here.hosts["d0"].engine

        async def breaks(_: Any, role: Role) -> Any:
            raise TandemError(ErrorReason.ENGINE_FAILED, "half of it is gone")

        monkeypatch.setattr(type(engine), "switch", breaks)
        with pytest.raises(TandemError, match="half of it is gone") as refused:
            await switch(here, "d0", Role.PREFILL)
        assert refused.value.reason is ErrorReason.ENGINE_FAILED
        answers = await asyncio.gather(*(here.ask(f"more {number}") for number in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4


async def test_the_role_is_named_if_it_is_none() -> None:
    async with services_here(decodes=2) as here:
        info = info_of(here, "d0")
        async with open_channel(info.address, PLAIN) as channel:
            stub: Any = decode_pb2_grpc.DecodeServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="role"):
                await stub.SwitchRole(session_pb2.SwitchRoleRequest(role=common_pb2.ROLE_UNSPECIFIED), timeout=5)
