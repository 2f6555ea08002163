"""Rooms in flight: what the gateway knows, and what the ranks of its workers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from rich.table import Table

from tandem.cli.services import TIMEOUT_S, Answer, Service, answer_of, ask_each
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.v1 import admin_pb2, admin_pb2_grpc, decode_pb2_grpc, prefill_pb2_grpc, session_pb2, unified_pb2_grpc

PAGE: Final = 500
COLUMNS: Final = ("room", "request", "try", "phase", "prefill", "decode", "age", "left")
RANK_COLUMNS: Final = ("worker", "rank", "room", "state", "peer", "pages", "moved", "age", "left")
_STUBS: Final[dict[str, Any]] = {
    "prefill": prefill_pb2_grpc.PrefillServiceStub,
    "decode": decode_pb2_grpc.DecodeServiceStub,
    "unified": unified_pb2_grpc.UnifiedServiceStub,
}


async def rooms_of(admin: str, credentials: Credentials, limit: int) -> tuple[list[admin_pb2.GatewayRoom], int]:
    """The oldest rooms of a gateway, page by page, and how many there are in all. Raises TandemError."""
    found: list[admin_pb2.GatewayRoom] = []
    after = total = 0
    async with open_channel(admin, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        while len(found) < limit:
            request = admin_pb2.ListRoomsRequest(page_size=min(PAGE, limit - len(found)), after=after)
            page = await answer_of(stub.ListRooms(request, timeout=TIMEOUT_S), f"the gateway at {admin}")
            found += page.rooms
            after, total = page.next_after, page.total
            if not after:
                break
    return found, total


async def rooms_of_ranks(workers: Sequence[Service], credentials: Credentials, limit: int) -> list[Answer]:
    """What the ranks of each worker say of their open rooms; messages are ListRankRoomsResponse."""
    request = session_pb2.ListRankRoomsRequest(limit=min(limit, 1000))

    def question(service: Service, channel: grpc.aio.Channel) -> Any:
        return _stub(service, channel).ListRankRooms(request, timeout=TIMEOUT_S)

    return await ask_each(workers, credentials, question)


async def abort_at_gateway(admin: str, credentials: Credentials, room: int) -> admin_pb2.GatewayRoom:
    """Ends a room on both legs. Raises TandemError: UNKNOWN_ROOM, FORBIDDEN and others."""
    async with open_channel(admin, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        call = stub.AbortRoom(admin_pb2.AbortRoomRequest(room=room), timeout=TIMEOUT_S)
        answer = await answer_of(call, f"the gateway at {admin}")
    found: admin_pb2.GatewayRoom = answer.room
    return found


async def abort_at_worker(worker: Service, credentials: Credentials, room: int) -> None:
    """Ends a room's leg on one worker, whosever room it is. Raises TandemError: UNKNOWN_ROOM, FORBIDDEN and others."""
    failure = convert.failure_to_proto(ErrorReason.CANCELLED, "An operator gave the request up.")
    async with open_channel(worker.address, credentials) as channel:
        call = _stub(worker, channel).Abort(session_pb2.AbortRequest(room=room, failure=failure), timeout=TIMEOUT_S)
        answer = await answer_of(call, worker.name)
    if not answer.found:
        raise TandemError(ErrorReason.UNKNOWN_ROOM, f"{worker.name} has no room {room} that runs")


def _stub(service: Service, channel: grpc.aio.Channel) -> Any:
    if service.kind not in _STUBS:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{service.name} is no worker: only workers have ranks")
    return _STUBS[service.kind](channel)


def phase_of(room: admin_pb2.GatewayRoom) -> str:
    """In words, e.g. "first token"."""
    return phase_name(room.phase)


def phase_name(phase: int) -> str:
    """ROOM_PHASE_FIRST_TOKEN as "first token"."""
    name = admin_pb2.RoomPhase.Name(phase)  # type: ignore[arg-type]
    return name.removeprefix("ROOM_PHASE_").lower().replace("_", " ")


def table_of_rooms(rooms: Sequence[admin_pb2.GatewayRoom]) -> Table:
    """For a person; --json has everything."""
    table = _table(COLUMNS)
    for room in rooms:
        # A unified worker is both.
        workers = (leg.worker_id or room.unified.worker_id for leg in (room.prefill, room.decode))
        times = (duration(room.age_ms), duration(room.left_ms))
        table.add_row(str(room.room), room.request_id, str(room.attempt), phase_of(room), *workers, *times)
    return table


def table_of_ranks(answers: Sequence[Answer]) -> Table:
    """The ranks' rooms of every worker that has answered."""
    table = _table(RANK_COLUMNS)
    for answer in answers:
        for room in () if answer.message is None else answer.message.rooms:
            rank = f"dp{room.rank.dp_rank} pp{room.rank.pp_rank} tp{room.rank.tp_rank}"
            numbers = (str(room.granted_pages), f"{room.bytes_moved / 1e6:.1f} MB")
            times = (duration(room.age_ms), duration(room.left_ms))
            cells = (str(room.room), room.state, room.peer.worker_id, *numbers, *times)
            table.add_row(answer.service.name, rank, *cells)
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in columns:
        # A room's number is there to be copied, in one piece.
        table.add_column(title, header_style="dim", overflow="fold", no_wrap=title == "room")
    return table


def duration(ms: int) -> str:
    """For a person: "850 ms", "12.3 s", "5 min"."""
    if ms < 1000:
        return f"{ms} ms"
    return f"{ms / 1000:.1f} s" if ms < 120_000 else f"{ms // 60_000} min"
