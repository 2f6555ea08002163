"""The provider `verbs` of one endpoint: its devices, its registered memory and its lanes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import Buffer, Direction, EndpointSettings, OnEvent, VerbsSettings
from tandem.rdma.memory import Memory
from tandem.rdma.verbs import library as pyverbs
from tandem.rdma.verbs.control import MAX_RAILS
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.hashing import HashThreads
from tandem.rdma.verbs.numa import nodes_of
from tandem.rdma.verbs.parts import LaneParts
from tandem.rdma.verbs.plan import MAX_PIECE_BYTES
from tandem.rdma.verbs.receiver import VerbsReceiverLane
from tandem.rdma.verbs.sender import VerbsSenderLane

_log = logging.getLogger(__name__)

_RANGES: dict[str, tuple[int, int]] = {
    "port": (1, 255),
    "gid_index": (-1, 65_535),
    "pkey_index": (0, 65_535),
    "mtu": (0, 5),
    "service_level": (0, 15),
    "traffic_class": (0, 255),
    "timeout": (1, 31),
    "retry_cnt": (0, 6),
    "rnr_retry": (0, 6),
    "min_rnr_timer": (0, 31),
    "send_depth": (1, 32_768),
    "receive_depth": (1, 32_768),
    "completions": (2, 1 << 22),
    "piece_bytes": (1, MAX_PIECE_BYTES),
    "window_bytes": (1, 1 << 40),
}


def check_settings(settings: VerbsSettings) -> None:
    """Raises TandemError(INVALID_ARGUMENT) naming the setting that is out of range."""
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"verbs {name} is {value}; {least}..{most} are allowed", field=name
            )
    if settings.posting not in pyverbs.PATHS:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"verbs posting is {settings.posting!r}; choose among {', '.join(pyverbs.PATHS)}",
            field="posting",
        )


def why_not_registered(buffers: Sequence[Buffer], settings: VerbsSettings, direction: Direction) -> str:
    """Tries to register memory with every device, and lets it go again: why that can't be done, '' if it can.

    Raises TandemError(INVALID_ARGUMENT) for settings or buffers that are out of range.
    """
    return VerbsProvider(Memory(buffers), EndpointSettings(verbs=settings, direction=direction)).probe()


class VerbsProvider:
    """Make, `start` on the event loop, then open lanes."""

    def __init__(self, memory: Memory, settings: EndpointSettings) -> None:
        """Raises TandemError(INVALID_ARGUMENT) for settings out of range."""
        check_settings(settings.verbs)
        self._memory = memory
        self._settings = settings
        self._devices: list[Device] = []
        self._threads: HashThreads | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._sending: LaneParts | None = None
        self._receiving: LaneParts | None = None

    def start(self) -> str:
        """Opens the devices and registers the memory with them; blocks while it does, so start before serving.

        Returns why verbs can't be used, '' if they can.
        """
        reason = self._prepare()
        for device in self._devices:
            device.start()
        return reason

    def probe(self) -> str:
        """What `start` would return; nothing stays open."""
        reason = self._prepare()
        self._close_devices()
        if self._threads is not None:
            self._threads.pool.shutdown()
        return reason

    def _prepare(self) -> str:
        try:
            library = pyverbs.load()
            self._open_devices(library)
            direction = self._settings.direction
            if direction is not Direction.RECEIVE:
                self._sending = self._register(remote_write=False)
            if direction is not Direction.SEND:
                self._receiving = self._register(remote_write=True)
        except TandemError as error:
            self._close_devices()
            return error.message
        return ""

    def _open_devices(self, library: pyverbs.Library) -> None:
        asked = self._settings.verbs.devices
        known = library.device_names()
        if missing := [name for name in asked if name not in known]:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"no verbs device {', '.join(missing)}; there are {known}")
        refused = ""
        for name in (asked or known)[:MAX_RAILS]:
            try:
                self._devices.append(Device(library, name, self._settings.verbs))
            except TandemError as error:
                if asked:
                    raise
                _log.info("%s is left out: %s", name, error.message)
                refused = error.message
        if not self._devices:
            raise TandemError(ErrorReason.NOT_SUPPORTED, refused or "this machine has no verbs device")

    def _register(self, *, remote_write: bool) -> LaneParts:
        self._threads = self._threads or HashThreads()
        keys = tuple(device.register(self._memory, remote_write=remote_write) for device in self._devices)
        nodes = nodes_of(self._memory)
        return LaneParts(self._memory, self._settings, tuple(self._devices), keys, nodes, self._threads, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @property
    def failure(self) -> str:
        """Why no lane can be opened any more, '' while a device is well."""
        failures = [device.failure.message for device in self._devices if device.failure is not None]
        return "; ".join(failures) if len(failures) == len(self._devices) else ""

    @property
    def queue_pairs_replaced(self) -> int:
        """Queue pairs that were made in the place of others."""
        return sum(device.pairs_replaced for device in self._devices)

    def sender_lane(self, on_event: OnEvent, on_gone: Callable[[VerbsSenderLane], None]) -> VerbsSenderLane:
        """Opens a sender's end."""
        if self._sending is None:
            raise TandemError(ErrorReason.NOT_SUPPORTED, "this endpoint does not send over verbs")
        return VerbsSenderLane(self._sending, on_event, on_gone)

    async def receiver_lane(
        self, sock: socket.socket, on_event: OnEvent, on_gone: Callable[[VerbsReceiverLane], None]
    ) -> VerbsReceiverLane:
        """Opens a receiver's end over its control connection; the caller bounds the wait."""
        if self._receiving is None:
            raise TandemError(ErrorReason.NOT_SUPPORTED, "this endpoint does not receive over verbs")
        lane = VerbsReceiverLane(self._receiving, sock, on_event, on_gone)
        try:
            await lane.opened()
        except BaseException:
            await lane.close()
            raise
        return lane

    async def close(self) -> None:
        """Frees everything; every lane is closed by then. Idempotent."""
        if self._ending:
            await asyncio.wait(list(self._ending))
        self._close_devices()
        if self._threads is not None:
            await self._threads.close()

    def _close_devices(self) -> None:
        while self._devices:
            self._devices.pop().close()
