"""A verbs device in software, for tests anywhere: reliable-connected queue pairs between parts of one process.

It stands where `tandem.rdma.verbs.library` has pyverbs, and keeps the rules that the lanes rely on: protection domains,
keys and access flags, order within a queue pair, receive requests that are used up, queue pairs that go to the error
state and flush, completions and their events. A seed decides which queue pair moves next. Faults are planted by test.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tandem.rdma.verbs import device, library
from tandem.rdma.verbs.chain import Codes
from tests.support.rdma.double_values import Completion, QpAttr, Sge

GID = b"\0" * 10 + b"\xff\xff\x0a\x00\x00\x01"

SUCCESS, LOC_PROT, FLUSH, REM_ACCESS, RETRY_EXC, RNR_EXC = 0, 4, 5, 10, 12, 13
WRITE, WRITE_WITH_IMM = 0, 1
SIGNALED = 2
LOCAL_WRITE, REMOTE_WRITE = 1, 2
QPS_ERR = 6

Fault = Callable[["DoubleQp", "SendRequest"], str]
"""What happens to a write: '' nothing, 'hold' it waits, 'drop' the peer does not answer, 'lose_ack' it lands, but the
sender does not hear of it, 'late' it lands when the fabric delivers, long after its sender has given it up, 'access'
its key is refused."""


class DoubleError(Exception):
    """Stands for PyverbsError."""


@dataclass
class SendRequest:
    """Stands for SendWR."""

    wr_id: int
    opcode: int
    num_sge: int
    imm_data: int
    sg: list[Sge]
    send_flags: int
    rkey: int = 0
    remote: int = 0

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        """Where to write."""
        self.rkey, self.remote = rkey, addr

    def close(self) -> None:
        """Nothing to free."""


class Fabric:
    """What connects the devices of one test."""

    def __init__(self, devices: tuple[str, ...] = ("dbl0", "dbl1"), seed: int = 0) -> None:
        self.devices = devices
        self.pairs: dict[int, DoubleQp] = {}
        self.down: set[str] = set()
        """Devices whose port is not active."""
        self.fault: Fault = lambda _qp, _request: ""
        self.open: list[object] = []
        """Everything that was made and not closed."""
        self.failed: set[str] = set()
        """Devices that are gone."""
        self.watched = True
        """Whether descriptors of asynchronous events are found."""
        self.flushes = True
        """Whether a queue pair in the error state gives back what was posted."""
        self.late: list[tuple[DoubleQp, SendRequest, bytes]] = []
        """Writes that are on their way for long."""
        self.writes = 0
        self._random = random.Random(seed)
        self._numbers = itertools.count(17)
        self._keys = itertools.count(0x100)
        self._scheduled = False

    def number(self, pair: DoubleQp) -> int:
        """A number for a new queue pair."""
        number = next(self._numbers)
        self.pairs[number] = pair
        return number

    def key(self) -> int:
        """A key for a new region."""
        return next(self._keys)

    def happen(self, name: str, event: str) -> None:
        """An asynchronous event on a device, for everyone who has it open."""
        for part in list(self.open):
            if isinstance(part, DoubleContext) and part.name == name:
                part.events.append(event)
                os.eventfd_write(part.event_fd, 1)

    def port(self, name: str, up: bool) -> None:
        """A port goes down or comes up."""
        self.down = self.down - {name} if up else self.down | {name}
        self.happen(name, "PORT_ACTIVE" if up else "PORT_ERR")

    def fail(self, name: str, event: str) -> None:
        """A device fails: it moves nothing, and its descriptor of events stays readable."""
        self.failed.add(name)
        for pair in self.pairs.values():
            pair.held |= pair.pd.device == name
        self.happen(name, event)
        self.happen(name, "")

    def schedule(self) -> None:
        """Has something move soon."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        busy = [pair for pair in self.pairs.values() if pair.requests and not pair.held]
        if busy:
            self._random.choice(busy).move()
            self.schedule()

    def deliver(self) -> int:
        """Packets arrive whose sender has given them up; gives how many a queue pair let land."""
        landed, late = 0, self.late
        self.late = []
        for pair, request, data in late:
            if pair in self.pairs.values():
                ctypes.memmove(request.remote, data, len(data))
                landed += 1
        return landed

    def release(self) -> None:
        """What was held goes on."""
        for pair in self.pairs.values():
            pair.held = False
        self.schedule()


class DoublePd:
    """Stands for PD."""

    def __init__(self, context: DoubleContext) -> None:
        self.fabric = context.fabric
        self.device = context.name
        self.regions: dict[int, DoubleMr] = {}
        self.fabric.open.append(self)

    def close(self) -> None:
        """Frees it."""
        assert not self.regions, "a protection domain is closed before its regions"
        self.fabric.open.remove(self)


class DoubleMr:
    """Stands for MR."""

    def __init__(self, pd: DoublePd, length: int, access: int, address: int) -> None:
        self._pd = pd
        self.address, self.length, self.access = address, length, access
        self.lkey = self.rkey = pd.fabric.key()
        pd.regions[self.rkey] = self
        pd.fabric.open.append(self)

    def covers(self, address: int, length: int) -> bool:
        """Whether a range lies inside."""
        return self.address <= address and address + length <= self.address + self.length

    def close(self) -> None:
        """Frees it."""
        del self._pd.regions[self.rkey]
        self._pd.fabric.open.remove(self)


class DoubleChannel:
    """Stands for CompChannel."""

    def __init__(self, fabric: Fabric) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._fabric = fabric
        fabric.open.append(self)

    def get_cq_event(self, cq: object) -> None:
        """Takes an event; there has to be one."""
        os.eventfd_read(self.fd)

    def close(self) -> None:
        """Frees it."""
        os.close(self.fd)
        self._fabric.open.remove(self)


class DoubleCq:
    """Stands for CQ."""

    def __init__(self, context: DoubleContext, cqe: int, _: object, channel: DoubleChannel, vector: int) -> None:
        self._capacity = cqe
        self._channel = channel
        self._entries: deque[Completion] = deque()
        self._armed = False
        self._fabric = context.fabric
        self._fabric.open.append(self)

    def req_notify(self) -> None:
        """The next completion makes an event."""
        self._armed = True

    def ack_events(self, count: int) -> None:
        """Nothing to do."""

    def push(self, completion: Completion) -> None:
        """A completion."""
        assert len(self._entries) < self._capacity, "the completion queue overflows"
        self._entries.append(completion)
        if self._armed:
            self._armed = False
            os.eventfd_write(self._channel.fd, 1)

    def poll(self, most: int) -> tuple[int, list[Completion]]:
        """Takes completions."""
        found = [self._entries.popleft() for _ in range(min(most, len(self._entries)))]
        return len(found), found

    def close(self) -> None:
        """Frees it."""
        self._fabric.open.remove(self)


class DoubleContext:
    """Stands for Context."""

    def __init__(self, fabric: Fabric, name: str) -> None:
        if name not in fabric.devices:
            raise DoubleError(f"no device {name}")
        self.fabric = fabric
        self.name = name
        self.events: deque[str] = deque()
        self.looked = 0
        """How often an event was asked for."""
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        fabric.open.append(self)

    def query_port(self, port: int) -> SimpleNamespace:
        """Its port, active or down."""
        return SimpleNamespace(state=1 if self.name in self.fabric.down else 4, lid=0, active_mtu=5)

    def query_device(self) -> SimpleNamespace:
        """Limits."""
        return SimpleNamespace(max_cqe=1 << 16)

    def close(self) -> None:
        """Frees it."""
        os.close(self.event_fd)
        self.fabric.open.remove(self)


@dataclass
class DoubleQp:
    """Stands for QP."""

    pd: DoublePd
    init: SimpleNamespace
    held: bool = False
    requests: deque[SendRequest] = field(default_factory=deque)
    receives: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._fabric = self.pd.fabric
        self._attr: QpAttr | None = None
        self._failed = False
        self._outstanding = 0
        self.qp_num = self._fabric.number(self)
        self._fabric.open.append(self)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def psn(self) -> int:
        """Number of the first packet that it sends."""
        return self._attr.sq_psn if self._attr is not None else -1

    def to_rts(self, attr: QpAttr) -> None:
        """Connects."""
        if self._failed or self._attr is not None:
            raise DoubleError("the queue pair is not in RESET")
        if self.pd.device in self._fabric.down:
            raise DoubleError("there is no way to the peer")
        self._attr = attr
        self._fabric.schedule()

    def modify(self, attr: QpAttr, mask: int) -> None:
        """Only to the error state."""
        assert attr.qp_state == QPS_ERR
        self.fail()

    def post_recv(self, request: SimpleNamespace) -> None:
        """Posts a receive request."""
        if len(self.receives) >= self.init.cap.max_recv_wr:
            raise DoubleError("the receive queue is full")
        self.receives.append(request.wr_id)
        if self._failed:
            self._flush()

    def post_send(self, request: SendRequest) -> None:
        """Posts a write."""
        if self._attr is None or len(self.requests) >= self.init.cap.max_send_wr:
            raise DoubleError("the send queue is full, or not connected")
        self.requests.append(
            SendRequest(
                request.wr_id, request.opcode, 1, request.imm_data, list(request.sg), request.send_flags,
                request.rkey, request.remote,
            )
        )  # fmt: skip
        if self._failed:
            self._flush()
        self._fabric.schedule()

    def move(self) -> None:
        """Carries the oldest write out."""
        request = self.requests[0]
        fate = self._fabric.fault(self, request)
        if fate == "hold":
            self.held = True
            return
        self.requests.popleft()
        assert self._attr is not None
        peer = self._fabric.pairs.get(self._attr.dest_qp_num)
        if fate == "late" and peer is not None:
            (sge,) = request.sg
            self._fabric.late.append((peer, request, ctypes.string_at(sge.addr, sge.length)))
        if fate in ("drop", "late") or peer is None or not peer.listens_to(self):
            self._break(request, RETRY_EXC)
            return
        (sge,) = request.sg
        ours, theirs = self.pd.regions.get(sge.lkey), peer.pd.regions.get(request.rkey)
        if ours is None or not ours.covers(sge.addr, sge.length):
            self._break(request, LOC_PROT)
        elif fate == "access" or not peer.lets_in(theirs, request.remote, sge.length):
            peer.fail()
            self._break(request, REM_ACCESS)
        elif request.opcode == WRITE_WITH_IMM and not peer.receives:
            self._break(request, RNR_EXC)
        else:
            ctypes.memmove(request.remote, sge.addr, sge.length)
            self._fabric.writes += 1
            if request.opcode == WRITE_WITH_IMM:
                wr_id = peer.receives.popleft()
                peer.init.rcq.push(Completion(wr_id, SUCCESS, 129, request.imm_data, peer.qp_num))
            if fate == "lose_ack":
                self._break(request, RETRY_EXC)
            elif request.send_flags & SIGNALED:
                self.init.scq.push(Completion(request.wr_id, SUCCESS, request.opcode, 0, self.qp_num))

    def listens_to(self, other: DoubleQp) -> bool:
        """Whether it answers another queue pair."""
        return not self._failed and self._attr is not None and self._attr.dest_qp_num == other.qp_num

    def lets_in(self, region: DoubleMr | None, address: int, length: int) -> bool:
        """Whether its peer may write there."""
        assert self._attr is not None
        flags = self._attr.qp_access_flags & (region.access if region else 0)
        return region is not None and bool(flags & REMOTE_WRITE) and region.covers(address, length)

    def _break(self, request: SendRequest, status: int) -> None:
        self.init.scq.push(Completion(request.wr_id, status, request.opcode, 0, self.qp_num))
        self.fail()

    def fail(self) -> None:
        """To the error state."""
        self._failed = True
        self._flush()

    def _flush(self) -> None:
        if not self._fabric.flushes:
            return
        while self.requests:
            self.init.scq.push(Completion(self.requests.popleft().wr_id, FLUSH, 0, 0, self.qp_num))
        while self.receives:
            self.init.rcq.push(Completion(self.receives.popleft(), FLUSH, 128, 0, self.qp_num))

    def close(self) -> None:
        """Destroys it."""
        del self._fabric.pairs[self.qp_num]
        self._fabric.open.remove(self)
        if self.pd.device in self._fabric.failed:
            raise DoubleError("the kernel has destroyed it before")


class DoubleLibrary:
    """Stands for `tandem.rdma.verbs.library.Library`."""

    IBV_QPT_RC = 2
    IBV_QPS_ERR = QPS_ERR
    IBV_QP_STATE = 1
    IBV_PORT_ACTIVE = 4
    IBV_ACCESS_LOCAL_WRITE = LOCAL_WRITE
    IBV_ACCESS_REMOTE_WRITE = REMOTE_WRITE
    IBV_WC_SUCCESS = SUCCESS
    IBV_WC_WR_FLUSH_ERR = FLUSH
    IBV_WR_RDMA_WRITE = WRITE
    IBV_WR_RDMA_WRITE_WITH_IMM = WRITE_WITH_IMM
    IBV_SEND_SIGNALED = SIGNALED
    codes = Codes(WRITE, WRITE_WITH_IMM, SIGNALED)
    LINK_STATUSES = (RETRY_EXC, RNR_EXC)
    PyverbsError = DoubleError
    PD, MR, CQ, QP, QPAttr, SGE, SendWR = DoublePd, DoubleMr, DoubleCq, DoubleQp, QpAttr, Sge, SendRequest

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    def open_device(self, name: str) -> tuple[DoubleContext, int | None]:
        """Opens a device; with the descriptor of its events."""
        context = DoubleContext(self.fabric, name)
        return context, context.event_fd if self.fabric.watched else None

    @staticmethod
    def next_event(context: DoubleContext) -> str | None:
        """Takes an event."""
        context.looked += 1
        if not context.events or not context.events[0]:
            return None
        os.eventfd_read(context.event_fd)
        return context.events.popleft()

    @staticmethod
    def QPInitAttr(**values: Any) -> SimpleNamespace:  # noqa: N802
        """What a queue pair is made with."""
        return SimpleNamespace(**values)

    @staticmethod
    def QPCap(send: int, receive: int, *_: int) -> SimpleNamespace:  # noqa: N802
        """Depths."""
        return SimpleNamespace(max_send_wr=send, max_recv_wr=receive)

    @staticmethod
    def AHAttr(**values: Any) -> SimpleNamespace:  # noqa: N802
        """A route."""
        return SimpleNamespace(**values)

    GlobalRoute = AHAttr

    @staticmethod
    def GID(text: str) -> str:  # noqa: N802
        """An address."""
        return text

    def device_names(self) -> list[str]:
        """Devices."""
        return list(self.fabric.devices)

    def completion_channel(self, context: DoubleContext) -> tuple[DoubleChannel, int]:
        """A channel and its descriptor."""
        channel = DoubleChannel(self.fabric)
        return channel, channel.fd

    @staticmethod
    def RecvWR(wr_id: int, count: int, sg: list[Sge]) -> SimpleNamespace:  # noqa: N802
        """A receive request."""
        assert count == len(sg) >= 1, "pyverbs wants at least one"
        return SimpleNamespace(wr_id=wr_id, close=lambda: None)

    @staticmethod
    def status_text(status: int) -> str:
        """Name of a completion's status."""
        return {LOC_PROT: "IBV_WC_LOC_PROT_ERR", REM_ACCESS: "IBV_WC_REM_ACCESS_ERR"}.get(status, f"status {status}")


@contextlib.contextmanager
def use_double(monkeypatch: pytest.MonkeyPatch, **fabric: Any) -> Iterator[Fabric]:
    """Endpoints that are started inside use the double's devices."""
    made = Fabric(**fabric)
    with monkeypatch.context() as patch:
        patch.setattr(library, "load", lambda: DoubleLibrary(made))
        patch.setattr(device, "read_gids", lambda *_: [device.GidEntry(1, GID, "RoCE v2")])
        yield made
