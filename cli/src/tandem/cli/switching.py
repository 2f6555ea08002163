"""`tandem switch`: a worker of the system run here ends, and one of another role starts in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc

from tandem.cli.board import read_state
from tandem.cli.plan import Kind
from tandem.cli.services import answer_of
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.rpc.operators import changed
from tandem.v1 import system_pb2, system_pb2_grpc

SERVICE_NAME: Final = system_pb2.DESCRIPTOR.services_by_name["SystemService"].full_name

Switch = Callable[[str, Kind], Awaitable[str]]
"""Puts one of a kind in a worker's place; returns its name. Raises TandemError."""


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
        task = asyncio.ensure_future(self._switch(request.worker_id, kind))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        name = await asyncio.shield(task)
        changed("worker", request.worker_id, name)
        return system_pb2.SwitchWorkerResponse(worker_id=name)


async def switch_here(state_file: Path, credentials: Credentials, worker_id: str, role: Role, timeout_s: float) -> str:
    """Asks the `tandem up` of a state file; returns the name of the worker in the other's place. Raises TandemError."""
    address = read_state(state_file).up
    if not address:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"the system of {state_file} can't be asked to switch workers")
    async with open_channel(address, credentials) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        request = system_pb2.SwitchWorkerRequest(worker_id=worker_id, role=convert.role_to_proto(role))
        answer = await answer_of(stub.SwitchWorker(request, timeout=timeout_s), "`tandem up`")
    return str(answer.worker_id)
