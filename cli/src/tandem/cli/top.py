"""`tandem top`: follows AdminService.WatchCluster and draws a frame for each message, until q is pressed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
from rich.console import Console
from rich.live import Live

from tandem.cli.frame import Message, frame
from tandem.cli.services import answer_of, document
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.v1 import admin_pb2, admin_pb2_grpc

QUIT_KEYS = frozenset(b"qQ\x03\x04")
"""q; and Ctrl-C and Ctrl-D, where a terminal sends them as keys."""


async def run_top(address: str, credentials: Credentials, interval_ms: int, *, once: bool, as_json: bool) -> None:
    """Follows a gateway. once: until its numbers were seen twice, so that there are rates. Raises TandemError."""
    console = Console(highlight=False, soft_wrap=False)
    messages = watch(address, credentials, interval_ms)
    async with contextlib.aclosing(messages):
        if as_json:
            await _lines(messages, once=once)
        elif once or not console.is_terminal:
            before = await anext(messages)
            console.print(frame(address, before, await anext(messages)))
        else:
            await _live(messages, address, console)


async def watch(address: str, credentials: Credentials, interval_ms: int) -> AsyncGenerator[Message, None]:
    """Messages of WatchCluster, without end. Raises TandemError when the gateway stops to answer."""
    who = f"the gateway at {address}"
    async with open_channel(address, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        call = stub.WatchCluster(admin_pb2.WatchClusterRequest(interval_ms=interval_ms))
        try:
            while (message := await answer_of(call.read(), who)) is not grpc.aio.EOF:
                yield message
        finally:
            call.cancel()
    raise TandemError(ErrorReason.PEER_LOST, f"{who} hung up")


async def _lines(messages: AsyncIterator[Message], *, once: bool) -> None:
    async for message in messages:
        print(json.dumps(document(message)), flush=True)
        if once:
            return


async def _live(messages: AsyncIterator[Message], address: str, console: Console) -> None:
    quit_wanted = asyncio.Event()
    with _keys(quit_wanted), Live(console=console, screen=True, auto_refresh=False) as live:

        async def draw() -> None:
            before: Message | None = None
            async for message in messages:
                live.update(frame(address, before, message), refresh=True)
                before = message

        drawing = asyncio.ensure_future(draw())
        waiting = asyncio.ensure_future(quit_wanted.wait())
        try:
            await asyncio.wait({drawing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (drawing, waiting):
                task.cancel()
            await asyncio.wait({drawing, waiting})
    if not drawing.cancelled():
        drawing.result()


@contextlib.contextmanager
def _keys(quit_wanted: asyncio.Event) -> Iterator[None]:
    """Sets the event when a key to quit is pressed, or at SIGINT; the terminal is as it was afterwards."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, quit_wanted.set)
    if not sys.stdin.isatty():
        yield
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed() -> None:
        # Past Python's own buffer, in which keys would wait unseen. A terminal that is gone ends it as q does.
        if QUIT_KEYS & set(os.read(stdin, 64) or b"q"):
            quit_wanted.set()

    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
