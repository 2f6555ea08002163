"""One device: a context, a protection domain, a completion queue, and the memory that is registered with it."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.pages import U32
from tandem.rdma.api import Buffer, VerbsSettings
from tandem.rdma.memory import Memory
from tandem.rdma.verbs.completions import Completion, poll
from tandem.rdma.verbs.control import RailAddress
from tandem.rdma.verbs.dmabuf import DmaBufRegion
from tandem.rdma.verbs.events import Effect, meaning_of
from tandem.rdma.verbs.library import Library
from tandem.rdma.verbs.queue_pair import QueuePair, QueueShape, serial_of

_SYSFS: Final = Path("/sys/class/infiniband")
_ROCE_2: Final = "RoCE v2"
_POLL: Final = 64
"""Completions taken at once; between two such turns the loop does other work."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GidEntry:
    """One entry of a port's GID table."""

    index: int
    gid: bytes
    kind: str
    """"RoCE v2", "IB/RoCE v1" or ""."""


def choose_gid(entries: Sequence[GidEntry]) -> GidEntry:
    """The entry to use: RoCE v2 over IPv4, else RoCE v2 with a routable address, else any RoCE v2, else the first.

    Raises TandemError(NOT_SUPPORTED) if there is none.
    """
    if not entries:
        raise TandemError(ErrorReason.NOT_SUPPORTED, "the port has no GID; is its network interface up?")

    def rank(entry: GidEntry) -> tuple[bool, bool, bool, int]:
        over_ipv4 = entry.gid[:12] == bytes(10) + b"\xff\xff"
        link_local = entry.gid[:2] == b"\xfe\x80"
        return entry.kind != _ROCE_2, not over_ipv4, link_local, entry.index

    return min(entries, key=rank)


def read_gids(device: str, port: int) -> list[GidEntry]:
    """The used entries of a port's GID table."""
    folder = _SYSFS / device / "ports" / str(port)
    found = []
    for path in sorted((folder / "gids").iterdir(), key=lambda path: int(path.name)):
        gid = bytes.fromhex(path.read_text().strip().replace(":", ""))
        if not any(gid):
            continue
        try:
            kind = (folder / "gid_attrs" / "types" / path.name).read_text().strip()
        except OSError:  # the kernel says so of an entry without a network interface
            kind = ""
        found.append(GidEntry(int(path.name), gid, kind))
    return found


def numa_node(device: str) -> int:
    """The device's NUMA node, -1 if it has none."""
    try:
        return int((_SYSFS / device / "device" / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


class Watcher(Protocol):
    """What is connected through a device."""

    def device_down(self) -> None:
        """Its port is not active any more, or it has failed: nothing goes through it."""


class Device:
    """Open while its endpoint lives. Used on the loop only."""

    def __init__(self, library: Library, name: str, settings: VerbsSettings) -> None:
        """Raises TandemError(NOT_SUPPORTED) if it can't be opened, or its port is not active."""
        self.library = library
        self.name = name
        self.settings = settings
        self.node = numa_node(name)
        self.active = True
        """Whether its port is, as far as events have told."""
        self.failure: TandemError | None = None
        """Why it can't be used any more."""
        self.changed = asyncio.Event()
        """Set for a moment when `active` or `failure` changes: it wakes who waits, and is never found set."""
        self.watchers: set[Watcher] = set()
        self.events: Counter[str] = Counter()
        """Asynchronous events so far, by name."""
        self.pairs_replaced = 0
        """Queue pairs that rails have made in the place of others."""
        self._serials = itertools.count(1)
        self._pairs: dict[int, QueuePair] = {}
        self._places = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: list[int] = []
        """Descriptors that the loop looks at."""
        self._again: asyncio.Handle | None = None
        self._parts: list[Any] = []
        """What was opened, in order: each holds on to those before it."""
        try:
            self._open()
        except library.PyverbsError as error:
            self.close()
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"device {name} can't be used: {error}") from error
        except TandemError:
            self.close()
            raise

    def _open(self) -> None:
        library, settings = self.library, self.settings
        self.context, self._event_fd = library.open_device(self.name)
        self._opened(self.context)
        if self._event_fd is None:
            _log.info(
                "%s: no descriptor of its events was found; only time-outs tell of a port that is down", self.name
            )
        port = self.context.query_port(settings.port)
        if port.state != library.IBV_PORT_ACTIVE:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"port {settings.port} of {self.name} is not active")
        gids = read_gids(self.name, settings.port)
        if settings.gid_index >= 0:
            gids = [entry for entry in gids if entry.index == settings.gid_index]
        chosen = choose_gid(gids)
        self.gid_index = chosen.index
        mtu = min(port.active_mtu, settings.mtu or port.active_mtu)
        self.address = RailAddress(chosen.gid, port.lid, mtu)
        self.pd = self._opened(library.PD(self.context))
        self.channel, self._fd = library.completion_channel(self.context)
        self._opened(self.channel)
        self._capacity = min(settings.completions, self.context.query_device().max_cqe)
        self.cq = self._opened(library.CQ(self.context, self._capacity, None, self.channel, 0))
        # A receive request has to name some memory, though a tag brings no bytes: one page that no peer has a key of.
        self._scratch = mmap.mmap(-1, mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._scratch))
        region = library.MR(self.pd, mmap.PAGESIZE, library.IBV_ACCESS_LOCAL_WRITE, address=address)
        self._scratch_region = self._opened(region)
        self.nowhere = self._opened(library.SGE(address, mmap.PAGESIZE, region.lkey))
        _log.info("%s port %d: GID %d (%s), MTU %d", self.name, settings.port, chosen.index, chosen.kind, 128 << mtu)

    def _opened(self, part: Any) -> Any:
        self._parts.append(part)
        return part

    # ------------------------------------------------------------ memory

    def register(self, memory: Memory, *, remote_write: bool) -> U32:
        """Registers a memory's buffers, once; gives their keys [buffers]: remote ones if the peer may write there.

        A sender's memory is registered without any remote right. Raises TandemError(NOT_SUPPORTED).
        """
        library = self.library
        access = library.IBV_ACCESS_LOCAL_WRITE | library.IBV_ACCESS_REMOTE_WRITE if remote_write else 0
        keys = []
        try:
            for (address, count), dmabuf in zip(memory.table().tolist(), memory.dmabufs, strict=True):
                if dmabuf is None:
                    region = self._opened(library.MR(self.pd, count, access, address=address))
                else:
                    region = self._opened(DmaBufRegion(self._scratch_region, Buffer(address, count, dmabuf), access))
                keys.append(region.rkey if remote_write else region.lkey)
        except library.PyverbsError as error:
            raise TandemError(
                ErrorReason.NOT_SUPPORTED,
                f"{self.name} can't register {memory.bytes} bytes: {error}. Is the limit on locked memory high enough?",
            ) from error
        return np.array(keys, np.uint32)

    # ------------------------------------------------------------ queue pairs

    def queue_pair(self, shape: QueueShape, on_completion: Callable[[Completion], None]) -> QueuePair:
        """Makes a queue pair. Raises TandemError: OVERLOADED if the completion queue is full, or TRANSFER_FAILED."""
        if self.failure is not None:
            raise self.failure
        if self._places + shape.completions > self._capacity:
            raise TandemError(
                ErrorReason.OVERLOADED,
                f"{self.name}: {len(self._pairs)} queue pairs take the {self._capacity} places of the completion queue",
            )
        serial = next(self._serials)
        pair = QueuePair(self, serial, shape, on_completion)
        self._pairs[serial] = pair
        self._places += shape.completions
        return pair

    def forget(self, serial: int, shape: QueueShape) -> None:
        """A queue pair was destroyed."""
        if self._pairs.pop(serial, None) is not None:
            self._places -= shape.completions

    # ------------------------------------------------------------ events

    def start(self) -> None:
        """Watches the completion queue and the device's own events from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self.cq.req_notify()
        self._watch(self._fd, self._readable)
        if self._event_fd is not None:
            self._watch(self._event_fd, self._happened)

    def _watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.add_reader(fd, on_readable)
        self._watched.append(fd)

    def _readable(self) -> None:
        # pyverbs holds the GIL while it waits for an event: here one is there for certain.
        self.channel.get_cq_event(self.cq)
        self.cq.ack_events(1)
        self.cq.req_notify()
        if self._again is None:
            self.take()

    def take(self) -> None:
        """Hands completions to their queue pairs, and comes back for more."""
        self._again = None
        found = poll(self.cq, _POLL)
        for completion in found:
            if pair := self._pairs.get(serial_of(completion.wr_id)):
                pair.complete(completion)
        if found and self._loop is not None:
            self._again = self._loop.call_soon(self.take)

    def _happened(self) -> None:
        name = self.library.next_event(self.context)
        if name is None:
            return
        self.events[name] += 1
        meaning = meaning_of(name)
        _log.log(meaning.level, "%s: %s (%s, %d so far)", self.name, meaning.words, name, self.events[name])
        match meaning.effect:
            case Effect.PORT:
                self._look_at_port()
            case Effect.END:
                self._unwatch()  # of a device that is gone both descriptors are readable for ever
                self.failure = TandemError(ErrorReason.TRANSFER_FAILED, f"{self.name}: {meaning.words} ({name})")
                self._change(active=False)

    def _look_at_port(self) -> None:
        """The event may be of another port, or of a state that is over."""
        try:
            active = self.context.query_port(self.settings.port).state == self.library.IBV_PORT_ACTIVE
        except self.library.PyverbsError:
            active = False
        if active != self.active:
            self._change(active)

    def _change(self, active: bool) -> None:
        self.active = active
        self.changed.set()
        self.changed.clear()
        if not active:
            for watcher in list(self.watchers):
                watcher.device_down()

    async def until_active(self) -> None:
        """Waits while the port is down; returns also if the device fails."""
        while not self.active and self.failure is None:
            await self.changed.wait()

    # ------------------------------------------------------------ ending

    def free(self, part: Any) -> None:
        """Closes something of pyverbs. Of a device that failed the kernel may have freed it before."""
        try:
            part.close()
        except self.library.PyverbsError:
            if self.failure is None:
                raise

    def _unwatch(self) -> None:
        while self._loop is not None and self._watched:
            self._loop.remove_reader(self._watched.pop())
        if self._again is not None:
            self._again.cancel()

    def close(self) -> None:
        """Frees everything, in order. No queue pair may be left. Idempotent."""
        self._unwatch()
        while self._parts:
            self.free(self._parts.pop())
