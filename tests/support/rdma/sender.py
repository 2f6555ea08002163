"""The sending side of a conformance test: in this process, or in another one.

The other process takes one JSON command per line, {"id", "do", ...}, and answers {"id", "result"} or {"id", "error"},
in whatever order the commands end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import socket
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import (
    Accepted,
    CmaProcess,
    Direction,
    EndpointSettings,
    LaneLost,
    ProviderOffer,
    Transfer,
    VerbsSettings,
    open_endpoint,
)
from tests.support.rdma.pools import buffers_of, random_pool

CROSSED = ("rxe0", "rxe1")
_LINE_LIMIT = 64 << 20
_NURSERY = multiprocessing.get_context("forkserver")
_NURSERY.set_forkserver_preload([__name__])


class Sender(Protocol):
    """A sending endpoint with one pool of random bytes, as the tests drive it."""

    async def call(self, do: str, **arguments: Any) -> Any:
        """Runs a command of `SenderSide`. Raises TandemError with the reason of the failure."""

    async def kill(self) -> None:
        """Dies without a word."""

    async def close(self) -> None:
        """Closes in order."""


class SenderSide:
    """The commands."""

    def __init__(self, pool_bytes: int, seed: int, settings: dict[str, Any]) -> None:
        self._pool = random_pool(pool_bytes, seed)
        self._settings = settings_of(settings, direction=Direction.SEND)
        self._endpoint = open_endpoint(buffers_of(self._pool), self._settings)
        self._accepted: list[Accepted] = []
        self._transfers: dict[int, Transfer] = {}
        self._lost: asyncio.Queue[str] = asyncio.Queue()

    async def start(self) -> None:
        """Starts the endpoint."""
        await self._endpoint.start()

    async def accept(self, offers: list[dict[str, Any]]) -> dict[str, Any]:
        """Accepts a receiver; lanes are numbered from 0."""
        accepted = self._endpoint.accept([offer_of(offer) for offer in offers], self._on_event)
        self._accepted.append(accepted)
        return plain(accepted.answer)

    async def write(
        self, key: int, src: list[int], dst: list[int], lengths: list[int], grant: int, chunk: int = 0, lane: int = -1
    ) -> None:
        """Begins a write."""
        arrays = [np.array(values, np.uint64) for values in (src, dst, lengths)]
        sender_lane = self._accepted[lane].lane
        self._transfers[key] = sender_lane.write(arrays[0], arrays[1], arrays[2], GrantId(grant), ChunkIndex(chunk))

    async def wait(self, key: int) -> dict[str, Any]:
        """Waits for its end."""
        result = await self._transfers[key].wait()
        reason = result.error.reason.value if result.error else None
        return {"status": result.status.value, "bytes": result.bytes, "checksum": result.checksum, "reason": reason}

    async def cancel(self, key: int) -> None:
        """Cancels it."""
        await self._transfers[key].cancel()

    async def lost(self) -> str:
        """Waits until a lane is lost; says why."""
        return await self._lost.get()

    async def close_lane(self, lane: int = -1) -> None:
        """Closes a lane."""
        await self._accepted[lane].lane.close()

    async def scribble(self) -> None:
        """Changes every byte of the pool, in place."""
        np.bitwise_xor(self._pool, 0xFF, out=self._pool)

    async def tamper(self, what: str) -> None:
        """Breaks the newest lane's idea of the receiver, as no lane does by itself; verbs only."""
        lane = self._accepted[-1].lane
        for rail in lane._rails:  # type: ignore[attr-defined]
            keys = rail._keys
            match what:
                case "rkey":
                    rail._keys = replace(keys, remote=keys.remote ^ np.uint32(0x55))
                case "credit":
                    rail._credits = 1 << 20  # of this life of the queue pair; the next begins with what is true
        if what == "end":
            memory = lane._remote  # type: ignore[attr-defined]
            memory._shifts[-1] += np.uint64(4096)

    async def close(self) -> None:
        """Closes the endpoint."""
        await self._endpoint.close()

    def _on_event(self, event: object) -> None:
        if isinstance(event, LaneLost):
            self._lost.put_nowait(event.error.reason.value)


class LocalSender:
    """In this process."""

    def __init__(self, side: SenderSide) -> None:
        self._side = side

    async def call(self, do: str, **arguments: Any) -> Any:
        """See `Sender`."""
        return await getattr(self._side, do)(**arguments)

    async def kill(self) -> None:
        """The nearest thing to dying that a part of this process can do."""
        await self._side.close()

    async def close(self) -> None:
        """See `Sender`."""
        await self._side.close()


class ProcessSender:
    """In another process."""

    def __init__(self, process: BaseProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    @classmethod
    async def start(cls, pool_bytes: int, seed: int, settings: dict[str, Any]) -> ProcessSender:
        """Starts it: a fork of a process that has imported all it needs, which takes long where memory is emulated."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = _NURSERY.Process(target=_main, args=(theirs, pool_bytes, seed, settings), daemon=True)
            process.start()
        return cls(process, *await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT))

    async def call(self, do: str, **arguments: Any) -> Any:
        """See `Sender`."""
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        return await asyncio.wait_for(future, 120)

    async def kill(self) -> None:
        """See `Sender`."""
        self._process.kill()
        await asyncio.to_thread(self._process.join, 30)

    async def close(self) -> None:
        """See `Sender`."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()
        await asyncio.to_thread(self._process.join, 30)
        assert self._process.exitcode is not None, "the sender did not end"
        await self._reading
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.pop(answer["id"])
                if future.done():
                    continue
                if "error" in answer:
                    future.set_exception(TandemError(ErrorReason[answer["error"]], answer["message"]))
                else:
                    future.set_result(answer["result"])
        for future in self._waiting.values():
            future.cancel()


def settings_of(shared: dict[str, Any], direction: Direction, **others: Any) -> EndpointSettings:
    """Settings that travel as JSON, and others that do not."""
    providers = tuple(shared["providers"])
    verbs = VerbsSettings(**{"devices": devices_of(direction), **shared.get("verbs", {})})
    return EndpointSettings(**{**shared, **others, "direction": direction, "providers": providers, "verbs": verbs})


def devices_of(direction: Direction) -> tuple[str, ...]:
    """Each rail crosses the RDMA guest's cable; elsewhere every device is a rail to itself."""
    if not all((Path("/sys/class/infiniband") / name).exists() for name in CROSSED):
        return ()
    return CROSSED if direction is Direction.SEND else CROSSED[::-1]


def plain(offer: ProviderOffer) -> dict[str, Any]:
    """An offer as JSON."""
    shown = asdict(offer)
    shown["token"] = offer.token.hex()
    if offer.cma is not None:
        shown["cma"]["nonce"] = offer.cma.nonce.hex()
    return shown


def offer_of(shown: dict[str, Any]) -> ProviderOffer:
    """The offer that `plain` showed."""
    cma = shown["cma"]
    process = CmaProcess(**{**cma, "nonce": bytes.fromhex(cma["nonce"])}) if cma else None
    return ProviderOffer(**{**shown, "token": bytes.fromhex(shown["token"]), "cma": process})


async def _serve(sock: socket.socket, pool_bytes: int, seed: int, settings: dict[str, Any]) -> None:
    commands, answers = await asyncio.open_connection(sock=sock, limit=_LINE_LIMIT)
    side = SenderSide(pool_bytes, seed, settings)
    await side.start()
    tasks: set[asyncio.Task[None]] = set()
    while line := await commands.readline():
        task = asyncio.get_running_loop().create_task(_answer(side, json.loads(line), answers))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await side.close()
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
    answers.close()


async def _answer(side: SenderSide, command: dict[str, Any], answers: asyncio.StreamWriter) -> None:
    number, do = command.pop("id"), command.pop("do")
    try:
        answer = {"id": number, "result": await getattr(side, do)(**command)}
    except TandemError as error:
        answer = {"id": number, "error": error.reason.value, "message": error.message}
    answers.write(json.dumps(answer).encode() + b"\n")


def _main(sock: socket.socket, pool_bytes: int, seed: int, settings: dict[str, Any]) -> None:
    asyncio.run(_serve(sock, pool_bytes, seed, settings))
