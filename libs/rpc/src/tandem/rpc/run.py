"""Runs a service: one event loop, signals turned into a graceful stop, and an exit code.

Services with grpc.aio run on plain asyncio. uvloop carries grpc.aio as well, but gRPC does its I/O
in threads of its own, so that nothing is won. The gateway, which serves HTTP as well, does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

from tandem.rpc.exits import ExitCode

log = logging.getLogger(__name__)

ANNOUNCEMENT: Final = "listening"
"""How a line begins by which a process says where it listens."""


def _nothing() -> None:
    """There is nothing else to end."""


class Stop:
    """Asks a service to stop. Set by a signal, or by the service itself."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        self.code = ExitCode.OK
        self.at_once: Callable[[], None] = _nothing
        """Called where a second signal cuts the stop short, before the process exits."""

    @property
    def requested(self) -> bool:
        """Whether someone has asked."""
        return self._event.is_set()

    def request(self, reason: str, code: ExitCode = ExitCode.OK) -> None:
        """Asks for a stop; the first one to ask is the reason."""
        if not self._event.is_set():
            self.reason, self.code = reason, code
            self._event.set()

    async def wait(self) -> None:
        """Returns when someone has asked."""
        await self._event.wait()


def _on_signal(stop: Stop, number: signal.Signals) -> None:
    if stop.requested:
        log.warning("%s again: exit at once", number.name)
        stop.at_once()
        os._exit(ExitCode.FORCED)
    log.info("%s: stop gracefully; a second signal exits at once", number.name)
    stop.request(number.name)


async def _serve(main: Callable[[Stop], Awaitable[int]]) -> int:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(_on_signal, stop, number))
    return await main(stop)


def run_service(
    main: Callable[[Stop], Awaitable[int]], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """Runs `main` until it returns its exit code. Call it once, from the main thread.

    loop_factory: makes the event loop; None = asyncio's own.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(main))


def leave(code: int) -> NoReturn:
    """Ends the process here and now; what was logged and printed is written out first.

    For a process that has closed what is its own, but has threads that it can't end, or libraries whose orderly end
    would take Python seconds. Nothing that is registered with atexit runs.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def announce(service: str, address: str) -> None:
    """Tells whoever started this process where it listens: one line on stdout, `listening <service> <address>`."""
    print(f"{ANNOUNCEMENT} {service} {address}", flush=True)
