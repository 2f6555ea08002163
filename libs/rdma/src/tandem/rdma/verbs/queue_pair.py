"""One reliable-connected queue pair: RESET, INIT, RTR, RTS, and at its end ERR, flushed, destroyed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.verbs.chain import WriteBatch
from tandem.rdma.verbs.completions import Completion
from tandem.rdma.verbs.control import QueuePairReady, RailAddress
from tandem.rdma.verbs.posting import Poster, open_poster

if TYPE_CHECKING:
    from tandem.rdma.verbs.device import Device

_PSN_BITS: Final = 24
_INDEX_BITS: Final = 40
_RECEIVE_BIT: Final = 1 << _INDEX_BITS
_SERIAL_SHIFT: Final = _INDEX_BITS + 1
_HOP_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class QueueShape:
    """What a queue pair is for."""

    send_depth: int
    """Most writes posted and not ended."""
    receive_depth: int
    """Most receive requests posted and not used; 1 where nothing is received."""
    remote_write: bool
    """Whether the peer may write this process' memory: on decode's side alone."""

    @property
    def completions(self) -> int:
        """Most completions that it can leave in a queue."""
        return self.send_depth + self.receive_depth


def serial_of(wr_id: int) -> int:
    """The queue pair that a work request was posted on. Its number is no help: the kernel uses that again."""
    return wr_id >> _SERIAL_SHIFT


def is_receive(wr_id: int) -> bool:
    """Whether a work request was a receive request."""
    return bool(wr_id & _RECEIVE_BIT)


def index_of(wr_id: int) -> int:
    """Index of a write among those of its queue pair."""
    return wr_id & (_RECEIVE_BIT - 1)


class QueuePair:
    """Made in INIT. Used on the loop only."""

    def __init__(self, device: Device, serial: int, shape: QueueShape, on_completion: Callable[[Completion], None]):
        """Raises TandemError(TRANSFER_FAILED) if the device has no place for it."""
        self.shape = shape
        self.psn = secrets.randbits(_PSN_BITS)
        self.posted = 0
        """Writes posted so far; the next one has this index."""
        self.done = 0
        """Index after the last write that is known to have ended."""
        self.receives = 0
        """Receive requests posted and not used."""
        self.flushed = asyncio.Event()
        """Set once nothing is posted any more, after `fail`."""
        self.destroyed = asyncio.Event()
        self._device = device
        self._library = device.library
        self._serial = serial
        self._on_completion = on_completion
        self._failing = False
        self._qp = self._make()
        self.number: int = self._qp.qp_num
        self._receive_request = self._library.RecvWR(0, 1, [device.nowhere])
        self._poster: Poster | None = None

    def _make(self) -> Any:
        library, shape = self._library, self.shape
        try:
            return library.QP(
                self._device.pd,
                library.QPInitAttr(
                    qp_type=library.IBV_QPT_RC,
                    scq=self._device.cq,
                    rcq=self._device.cq,
                    cap=library.QPCap(shape.send_depth, shape.receive_depth, 1, 1, 0),
                    sq_sig_all=0,
                ),
            )
        except library.PyverbsError as error:
            raise TandemError(
                ErrorReason.TRANSFER_FAILED, f"{self._device.name} makes no queue pair: {error}"
            ) from error

    @property
    def room(self) -> int:
        """Writes that may be posted now."""
        return self.shape.send_depth - (self.posted - self.done)

    # ------------------------------------------------------------ life

    def connect(self, peer: RailAddress, theirs: QueuePairReady) -> None:
        """Connects to the peer's queue pair and posts the receive requests. Raises TandemError(TRANSFER_FAILED)."""
        library, settings = self._library, self._device.settings
        attr = library.QPAttr(port_num=settings.port)
        attr.qp_access_flags = library.IBV_ACCESS_REMOTE_WRITE if self.shape.remote_write else 0
        attr.pkey_index = settings.pkey_index
        attr.dest_qp_num = theirs.number
        attr.path_mtu = min(self._device.address.mtu, peer.mtu)
        attr.rq_psn, attr.sq_psn = theirs.psn, self.psn
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 1  # nobody reads, but some devices refuse 0
        attr.timeout, attr.retry_cnt = settings.timeout, settings.retry_cnt
        attr.rnr_retry, attr.min_rnr_timer = settings.rnr_retry, settings.min_rnr_timer
        attr.ah_attr = self._route(peer)
        try:
            self._qp.to_rts(attr)
            if self.shape.remote_write:
                self.post_receives(self.shape.receive_depth)
        except library.PyverbsError as error:
            raise TandemError(
                ErrorReason.TRANSFER_FAILED, f"{self._device.name} can't connect to its peer: {error}"
            ) from error

    def _route(self, peer: RailAddress) -> Any:
        library, settings = self._library, self._device.settings
        gid = ":".join(peer.gid[at : at + 2].hex() for at in range(0, 16, 2))
        route = library.GlobalRoute(
            dgid=library.GID(gid),
            sgid_index=self._device.gid_index,
            hop_limit=_HOP_LIMIT,
            traffic_class=settings.traffic_class,
        )
        return library.AHAttr(gr=route, is_global=1, dlid=peer.lid, sl=settings.service_level, port_num=settings.port)

    def fail(self) -> None:
        """Moves it to the error state: from now on it drops what comes and flushes what is posted. Idempotent."""
        if self._failing:
            return
        self._failing = True
        library = self._library
        attr = library.QPAttr()
        attr.qp_state = library.IBV_QPS_ERR
        # It fails if the device is gone, or if the pair was never connected: destroying it ends it as well.
        with contextlib.suppress(library.PyverbsError):
            self._qp.modify(attr, library.IBV_QP_STATE)
        self._see_flushed()

    def close(self) -> None:
        """Destroys it. When this returns the device uses no memory on its behalf. Call `fail` first."""
        if self._poster is not None:
            self._poster.close()
        self._receive_request.close()
        self._device.free(self._qp)
        self._device.forget(self._serial, self.shape)
        self.flushed.set()
        self.destroyed.set()

    # ------------------------------------------------------------ work

    def post(self, batch: WriteBatch, first: int, count: int) -> None:
        """Posts writes first..first+count of a batch. Raises TandemError(TRANSFER_FAILED)."""
        if self._poster is None:
            path = self._device.settings.posting
            self._poster = open_poster(self._library, self._qp, path, self.shape.send_depth)
        self._poster.post(batch, first, count, self._serial << _SERIAL_SHIFT | self.posted)
        self.posted += count

    def post_receives(self, count: int) -> None:
        """Posts receive requests, which take a tag and no bytes. Raises PyverbsError."""
        for _ in range(count):
            self._receive_request.wr_id = self._serial << _SERIAL_SHIFT | _RECEIVE_BIT
            self._qp.post_recv(self._receive_request)
        self.receives += count

    def complete(self, completion: Completion) -> None:
        """The device: a work request ended."""
        if is_receive(completion.wr_id):
            self.receives -= 1
        else:
            self.done = index_of(completion.wr_id) + 1
        self._on_completion(completion)
        self._see_flushed()

    def _see_flushed(self) -> None:
        if self._failing and self.done >= self.posted and self.receives <= 0:
            self.flushed.set()
