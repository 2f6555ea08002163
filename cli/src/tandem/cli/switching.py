"""`tandem switch`: a worker takes another role while it runs, or ends and one of that role starts in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc

from tandem.cli.board import read_state
from tandem.cli.cluster import STUBS
from tandem.cli.plan import Kind
from tandem.cli.services import Service, answer_of, pick, services_of
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.rpc.operators import changed
from tandem.v1 import session_pb2, system_pb2, system_pb2_grpc

SERVICE_NAME: Final = system_pb2.DESCRIPTOR.services_by_name["SystemService"].full_name

Switch = Callable[[str, Kind, bool], Awaitable[str]]
"""Makes a worker one of a kind, or puts one in its place: always, if the last is true; returns its name. Raises
TandemError."""


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """SystemService, in `tandem up`."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._running: set[asyncio.Task[str]] = set()

    async def SwitchWorker(  # noqa: N802 - the name is the contract's
        self, request: system_pb2.SwitchWorkerRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> system_pb2.SwitchWorkerResponse:
        """One worker for another. It is done to its end, also if the caller does not wait for it."""
        del context
        kind = Kind(convert.role_from_proto(request.role).value)
        task = asyncio.ensure_future(self._switch(request.worker_id, kind, request.restart))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        name = await asyncio.shield(task)
        changed("worker", request.worker_id, name)
        return system_pb2.SwitchWorkerResponse(worker_id=name)


async def switch_live(service: Service, credentials: Credentials, role: Role, timeout_s: float | None) -> None:
    """Asks a worker to take another role while it runs. Raises TandemError, NOT_SUPPORTED among others."""
    async with open_channel(service.address, credentials) as channel:
        stub = STUBS[convert.role_to_proto(Role(service.kind))](channel)
        request = session_pb2.SwitchRoleRequest(role=convert.role_to_proto(role))
        await answer_of(stub.SwitchRole(request, timeout=timeout_s), service.name)


async def switch_there(admin: str, credentials: Credentials, worker_id: str, role: Role, timeout_s: float) -> str:
    """The same of a worker that a gateway sees; returns its name, which it keeps. Raises TandemError."""
    [service] = pick(await services_of(admin, credentials), [worker_id])
    if not service.is_worker:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{worker_id} is no worker", field="worker_id")
    await switch_live(service, credentials, role, timeout_s)
    return worker_id


async def switch_here(
    state_file: Path, credentials: Credentials, worker_id: str, role: Role, timeout_s: float, *, restart: bool = False
) -> str:
    """Asks the `tandem up` of a state file; returns the name of the worker that has the role now: another one if it was
    started in the place of this one, as it is where there is no other way, or with `restart`. Raises TandemError."""
    address = read_state(state_file).up
    if not address:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"the system of {state_file} can't be asked to switch workers")
    async with open_channel(address, credentials) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        request = system_pb2.SwitchWorkerRequest(worker_id=worker_id, role=convert.role_to_proto(role), restart=restart)
        answer = await answer_of(stub.SwitchWorker(request, timeout=timeout_s), "`tandem up`")
    return str(answer.worker_id)
