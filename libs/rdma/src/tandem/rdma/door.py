"""Where a sender's lanes listen, and how a connection is opened from either side."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64
from tandem.rdma.memory import MAX_BUFFERS
from tandem.rdma.wire import KNOCK_BYTES, WELCOME_BYTES, Knock, Welcome

_MAX_GUESTS: Final = 128
"""Most connections that have not shown their token yet."""
_BACKLOG: Final = 128

_log = logging.getLogger(__name__)


class Guarded(Protocol):
    """A sender's lane, as the door knows it."""

    def claim(self, stream: int) -> bool:
        """Takes the place of one connection; False if there is none, or it is taken."""

    @property
    def fully_claimed(self) -> bool:
        """Whether every connection has come."""

    def welcome(self, stream: int) -> bytes:
        """What a connection is answered that was let in."""

    def attach(self, stream: int, sock: socket.socket) -> None:
        """Takes a claimed connection over."""


class Door:
    """A listening socket that lets in who has the token of a lane, once per connection of that lane."""

    def __init__(self, host: str, advertise_host: str, patience_ms: int) -> None:
        """Raises TandemError(INVALID_ARGUMENT) if the host can't be bound."""
        self._loop = asyncio.get_running_loop()
        self._patience_s = patience_ms / 1000
        self._lanes: list[tuple[bytes, Guarded]] = []
        self._guests: set[asyncio.Task[None]] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.bind((host, 0))
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"can't listen on {host}: {error.strerror}") from error
        shown = advertise_host or host
        port = self._sock.getsockname()[1]
        self.address = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
        self._loop.add_reader(self._sock, self._answer)

    def expect(self, token: bytes, lane: Guarded) -> None:
        """Lets the lane's connections in."""
        self._lanes.append((token, lane))

    def forget(self, lane: Guarded) -> None:
        """Lets no more of them in."""
        self._lanes = [entry for entry in self._lanes if entry[1] is not lane]

    async def close(self) -> None:
        """Stops listening. Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        guests = list(self._guests)
        for guest in guests:
            guest.cancel()
        await asyncio.gather(*guests, return_exceptions=True)

    def _answer(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return  # gone again
        if len(self._guests) >= _MAX_GUESTS:
            sock.close()
            return
        sock.setblocking(False)
        guest = self._loop.create_task(self._greet(sock))
        self._guests.add(guest)
        guest.add_done_callback(self._guests.discard)

    async def _greet(self, sock: socket.socket) -> None:
        handed_over = False
        try:
            async with asyncio.timeout(self._patience_s):
                knock = Knock.unpack(await _receive(self._loop, sock, KNOCK_BYTES))
                lane = self._admit(knock)
                if lane is None:
                    _log.warning("a connection with a wrong or used token was refused")
                    await self._loop.sock_sendall(sock, Welcome(False, 1, 0).pack())
                    return
                await self._loop.sock_sendall(sock, lane.welcome(knock.stream))
            handed_over = True
            lane.attach(knock.stream, sock)
        except (TandemError, OSError, TimeoutError) as error:
            _log.debug("a connection was dropped at the door: %s", error)
        finally:
            if not handed_over:
                sock.close()

    def _admit(self, knock: Knock) -> Guarded | None:
        found = None
        for token, lane in self._lanes:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token, knock.token):
                found = lane
        if found is None or not found.claim(knock.stream):
            return None
        if found.fully_claimed:
            self.forget(found)
        return found


async def knock_at(address: str, token: bytes, stream: int) -> tuple[socket.socket, Welcome, U64]:
    """Receiver: opens one connection of a lane; gives it, the sender's answer and its buffer table [n, 2].

    Raises TandemError(LINK_LOST) if the token is refused, TandemError(PROTOCOL_VIOLATION), or OSError.
    """
    loop = asyncio.get_running_loop()
    family, target = await _resolve(loop, address)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(sock, target)
        await loop.sock_sendall(sock, Knock(token, stream).pack())
        welcome = Welcome.unpack(await _receive(loop, sock, WELCOME_BYTES))
        if not welcome.accepted:
            raise TandemError(ErrorReason.LINK_LOST, f"the sender at {address} refused the lane's token")
        if welcome.buffers > MAX_BUFFERS:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"the sender at {address} shows too many buffers")
        table = np.frombuffer(await _receive(loop, sock, 16 * welcome.buffers), np.uint64).reshape(-1, 2)
    except BaseException:
        sock.close()
        raise
    return sock, welcome, table


async def within(timeout_ms: int, opening: Coroutine[Any, Any, Any], address: str) -> Any:
    """Runs an opening under a time limit; turns its network errors into TandemError(LINK_LOST)."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await opening
    except TimeoutError:
        raise TandemError(ErrorReason.LINK_LOST, f"{address} did not answer within {timeout_ms} ms") from None
    except OSError as error:
        raise TandemError(ErrorReason.LINK_LOST, f"{address} can't be reached: {error.strerror or error}") from error


async def _resolve(loop: asyncio.AbstractEventLoop, address: str) -> tuple[int, Any]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{address!r} is no host:port")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = await loop.sock_recv_into(sock, view)
        if not got:
            raise ConnectionResetError("the peer hung up")
        view = view[got:]
    return bytes(data)
