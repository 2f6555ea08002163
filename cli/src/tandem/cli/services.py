"""The services of a running system: where each listens, and how all of them are asked the same thing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict

from tandem.cli.board import read_state
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.rpc.errors import REASON_KEY, from_rpc_error
from tandem.v1 import admin_pb2, admin_pb2_grpc, common_pb2, control_pb2, control_pb2_grpc

TIMEOUT_S: Final = 5.0
_ROLES: Final = [role.value for role in Role]
_NO_ANSWER: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_BOOTSTRAP_OF_GATEWAY: Final = "TANDEM_GATEWAY_BOOTSTRAP_ADDRESS"


@dataclass(frozen=True, slots=True)
class Service:
    """One process that can be asked."""

    name: str
    """Worker id, or "bootstrap" or "gateway"."""
    kind: str
    """bootstrap, gateway, prefill, decode or unified."""
    address: str
    """host:port of its gRPC server; the gateway's is that of AdminService. Empty: it does not run."""

    @property
    def is_worker(self) -> bool:
        """Whether it has a role, which is its kind."""
        return self.kind in _ROLES


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said, or why it said nothing."""

    service: Service
    message: Any = None
    error: str = ""


def admin_address(given: str, state_file: Path) -> str:
    """host:port of AdminService: as given, else of the system run here. Raises TandemError."""
    if given:
        return given.removeprefix("http://")
    address = read_state(state_file).admin
    if not address:
        raise TandemError(ErrorReason.NO_WORKER, "the gateway of the system that runs here is still starting")
    return address


def services_here(state_file: Path) -> list[Service]:
    """Every service of the system run here, as its state file has them. Raises TandemError."""
    state = read_state(state_file)
    return [
        Service(row.name, row.kind, state.admin if row.kind == "gateway" else row.address) for row in state.processes
    ]


async def services_of(admin: str, credentials: Credentials) -> list[Service]:
    """Bootstrap, the workers that a gateway sees, by role and name, and the gateway. Raises TandemError."""
    async with open_channel(admin, credentials) as channel:
        who = f"the gateway at {admin}"
        control: Any = control_pb2_grpc.ControlServiceStub(channel)
        shown = await answer_of(control.GetSettings(control_pb2.GetSettingsRequest(), timeout=TIMEOUT_S), who)
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        call = stub.ListClusterWorkers(admin_pb2.ListClusterWorkersRequest(), timeout=TIMEOUT_S)
        listed = await answer_of(call, who)
    bootstrap = next((one.value for one in shown.settings if one.variable == _BOOTSTRAP_OF_GATEWAY), "")
    workers = [
        Service(
            one.info.worker.worker_id,
            common_pb2.Role.Name(one.info.role).removeprefix("ROLE_").lower(),
            one.info.address,
        )
        for one in listed.workers
    ]
    workers.sort(key=lambda one: (_ROLES.index(one.kind), one.name))
    return [Service("bootstrap", "bootstrap", bootstrap), *workers, Service("gateway", "gateway", admin)]


def pick(services: Sequence[Service], names: Sequence[str]) -> list[Service]:
    """The services of these names, in their order. Raises UNKNOWN_WORKER, which says who is there."""
    by_name = {service.name: service for service in services}
    for name in names:
        if name not in by_name:
            there = ", ".join(by_name) or "nobody"
            raise TandemError(ErrorReason.UNKNOWN_WORKER, f"there is no {name!r} in this system; there are {there}")
    return [by_name[name] for name in dict.fromkeys(names)]


async def ask_each(
    services: Sequence[Service], credentials: Credentials, question: Callable[[Service, grpc.aio.Channel], Any]
) -> list[Answer]:
    """Asks all at once. question: the call of an RPC on a channel to the service."""

    async def one(service: Service) -> Answer:
        if not service.address:
            return Answer(service, error=f"{service.name} does not run")
        try:
            async with open_channel(service.address, credentials) as channel:
                return Answer(service, await answer_of(question(service, channel), service.name))
        except TandemError as error:
            return Answer(service, error=error.message)

    return list(await asyncio.gather(*(one(service) for service in services)))


async def answer_of(call: Awaitable[Any], who: str) -> Any:
    """What a call brings. Raises TandemError, which names `who`."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        known = from_rpc_error(error)
        said = (error.trailing_metadata() or grpc.aio.Metadata()).get(REASON_KEY) is not None
        silent = error.code() in _NO_ANSWER and not said
        text = f"{who} does not answer" if silent else f"{who} says"
        raise TandemError(known.reason, f"{text}: {known.message}", field=known.field) from error


def document(message: Any) -> dict[str, Any]:
    """A message as JSON, every field there. Numbers that may pass 2^53 are texts, as protobuf's JSON has them."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
