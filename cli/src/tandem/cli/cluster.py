"""Looks at a running cluster and steers it: `tandem workers`, `drain` and `undrain`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from tandem.cli.services import TIMEOUT_S, answer_of
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    bootstrap_pb2,
    bootstrap_pb2_grpc,
    common_pb2,
    decode_pb2_grpc,
    prefill_pb2_grpc,
    session_pb2,
    unified_pb2_grpc,
)

STUBS: Final[dict[int, Any]] = {
    common_pb2.ROLE_PREFILL: prefill_pb2_grpc.PrefillServiceStub,
    common_pb2.ROLE_DECODE: decode_pb2_grpc.DecodeServiceStub,
    common_pb2.ROLE_UNIFIED: unified_pb2_grpc.UnifiedServiceStub,
}
"""By the role that a worker has."""


@dataclass(frozen=True, slots=True)
class Member:
    """A registered worker."""

    info: bootstrap_pb2.WorkerInfo
    status: session_pb2.WorkerStatus | None
    """What it says of itself; None if it does not answer."""
    breaker: str = ""
    """Of a gateway that was asked: closed, open or half_open; empty of others."""

    @property
    def role(self) -> str:
        """prefill, decode or unified."""
        return common_pb2.Role.Name(self.info.role).removeprefix("ROLE_").lower()

    def document(self) -> dict[str, Any]:
        """As JSON, every field there. Numbers that may pass 2^53 are texts, as protobuf's JSON has them."""
        status = None if self.status is None else _dict(self.status)
        return {"info": _dict(self.info), "status": status} | ({"breaker": self.breaker} if self.breaker else {})

    @property
    def state(self) -> str:
        """Whether it gets requests, in one word, or why not."""
        if self.breaker in ("open", "half_open"):
            return "failing"
        return "draining" if self.info.draining else "ready"


async def members_of_bootstrap(address: str, credentials: Credentials) -> list[Member]:
    """Every worker that bootstrap lists, each asked for its status. Raises TandemError if bootstrap is silent."""
    async with open_channel(address, credentials) as channel:
        stub: Any = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        call = stub.ListWorkers(bootstrap_pb2.ListWorkersRequest(), timeout=TIMEOUT_S)
        listed = await answer_of(call, f"bootstrap at {address}")
    statuses = await asyncio.gather(*(status_of(info, credentials) for info in listed.workers))
    return [Member(info, status) for info, status in zip(listed.workers, statuses, strict=True)]


async def members_of_gateway(address: str, credentials: Credentials) -> list[Member]:
    """Every worker that a gateway's AdminService lists, with the status that the gateway has of it."""
    async with open_channel(address, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        call = stub.ListClusterWorkers(admin_pb2.ListClusterWorkersRequest(), timeout=TIMEOUT_S)
        listed = await answer_of(call, f"AdminService at {address}")
    return [Member(one.info, one.status if one.HasField("status") else None, _breaker(one)) for one in listed.workers]


async def status_of(info: bootstrap_pb2.WorkerInfo, credentials: Credentials) -> session_pb2.WorkerStatus | None:
    """A worker's status, or None if it does not answer."""
    async with open_channel(info.address, credentials) as channel:
        stub = STUBS[info.role](channel)
        try:
            answer = await stub.GetStatus(session_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        status: session_pb2.WorkerStatus = answer.status
        return status


async def set_draining(address: str, worker_id: str, *, draining: bool, credentials: Credentials) -> None:
    """Marks a worker at bootstrap. Raises TandemError(UNKNOWN_WORKER) and others as bootstrap says."""
    async with open_channel(address, credentials) as channel:
        stub: Any = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        if draining:
            call = stub.Drain(bootstrap_pb2.DrainRequest(worker_id=worker_id), timeout=TIMEOUT_S)
        else:
            call = stub.Undrain(bootstrap_pb2.UndrainRequest(worker_id=worker_id), timeout=TIMEOUT_S)
        await answer_of(call, f"bootstrap at {address}")


async def drain_at_gateway(address: str, worker_id: str, *, draining: bool, credentials: Credentials) -> None:
    """The same by a gateway's AdminService, which does it for operators. Raises TandemError, FORBIDDEN among others."""
    async with open_channel(address, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        if draining:
            call = stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id=worker_id), timeout=TIMEOUT_S)
        else:
            call = stub.UndrainWorker(admin_pb2.UndrainWorkerRequest(worker_id=worker_id), timeout=TIMEOUT_S)
        await answer_of(call, f"AdminService at {address}")


COLUMNS = ("worker", "role", "address", "state", "run/wait", "ok/failed", "pages free/total", "links")


def table_of(members: list[Member]) -> Table:
    """Workers for a person, narrow enough for 80 columns; --json has everything."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in COLUMNS:
        table.add_column(title, header_style="dim", overflow="fold")
    for member in members:
        table.add_row(*_cells(member))
    return table


def _breaker(worker: admin_pb2.ClusterWorker) -> str:
    name = admin_pb2.BreakerState.Name(worker.breaker).removeprefix("BREAKER_STATE_").lower()
    return "" if name == "unspecified" else name


def _cells(member: Member) -> list[str]:
    info, status = member.info, member.status
    known = [info.worker.worker_id, member.role, info.address]
    if status is None:
        return [*known, "silent"]
    pages = [f"{pool.free + pool.evictable}/{pool.total}" for pool in status.pools if pool.name == "kv"]
    return [
        *known,
        member.state,
        f"{status.running}/{status.waiting}",
        f"{status.rooms_succeeded}/{status.rooms_failed}",
        " ".join(pages),
        " ".join(status.links),
    ]


def _dict(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
