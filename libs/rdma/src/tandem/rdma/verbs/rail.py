"""A rail of a lane: one device at each end, a queue pair on each, and how both are replaced after a failure.

A queue pair has a number of its life on the rail, from 1, the same at both ends. Whoever finds its queue pair broken,
or has to fence it, makes the next life; the other end follows. The old queue pair is moved to the error state, flushed
and destroyed before that, so whatever was posted on it can neither read nor write any memory from then on.

Each end says when its queue pair is destroyed, and the other leaves its own. Packets of a queue pair that broke may
still be on their way: only the end of the receiver's is proof that none of them lands any more.

An end whose port goes down takes the rail out of use, so neither waits for time-outs. It makes the next life when the
port is active again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Protocol

from tandem.core.errors import TandemError
from tandem.rdma.verbs.completions import Completion
from tandem.rdma.verbs.control import Message, QueuePairReady, RailAddress, RailDown, RailReady
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.queue_pair import QueuePair, QueueShape

_FLUSH_TIMEOUT_S = 0.2
"""Longest wait for what was posted to be flushed; destroying the queue pair ends it in any case."""

_log = logging.getLogger(__name__)


class RailUser(Protocol):
    """The lane's end of a rail."""

    def rail_up(self, rail: Rail) -> None:
        """Both queue pairs of the rail's life are connected."""

    def rail_down(self, rail: Rail) -> None:
        """The queue pair is destroyed: nothing that was posted on it moves any more."""

    def rail_lost(self, rail: Rail, error: TandemError) -> None:
        """Its queue pair could not be made or connected; the lane may renew it."""

    def completed(self, rail: Rail, completion: Completion) -> None:
        """A work request of the live queue pair ended."""

    def send(self, message: Message) -> None:
        """Tells the peer."""


@dataclass(frozen=True, slots=True)
class RailParts:
    """What a rail is made of."""

    index: int
    device: Device
    peer: RailAddress
    shape: QueueShape


class Rail:
    """One end of a rail."""

    def __init__(self, parts: RailParts, user: RailUser) -> None:
        self.index = parts.index
        self.device = parts.device
        self.life = 0
        self.up = False
        """Whether both ends are connected, as far as this end knows."""
        self.peer_ended = 0
        """The last life whose queue pair the peer has destroyed."""
        self.queue_pair: QueuePair | None = None
        self._flushing: QueuePair | None = None
        """The pair that is taken out of use and not destroyed yet."""
        self._peer = parts.peer
        self._shape = parts.shape
        self._user = user
        self._wanted = 1
        self._theirs: QueuePairReady | None = None
        self._ready_life = 0
        self._connected = False
        self._closed = False
        self._delay_s = 0.0
        self._renewal: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ lives

    def open(self) -> None:
        """Makes the first queue pair."""
        self.device.watchers.add(self)
        self._renew()

    def renew(self, delay_s: float = 0.0) -> None:
        """Takes the queue pair out of use now, fences it and makes the next: after a delay, or once its port is up."""
        self._wanted = max(self._wanted, self.life + 1)
        self._delay_s = delay_s
        self._renew()

    async def fence(self) -> None:
        """`renew`; returns once the present queue pair, or the one that is being flushed, is destroyed."""
        old = self.queue_pair or self._flushing
        self.renew()
        if old is not None:
            await old.destroyed.wait()

    async def close(self) -> None:
        """Fences for good. Idempotent."""
        self._closed = True
        self.device.watchers.discard(self)
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        await self._fence()

    def device_down(self) -> None:
        """See `Watcher`."""
        self.renew()

    def on_down(self, message: RailDown) -> None:
        """The peer's queue pair is destroyed."""
        self.peer_ended = max(self.peer_ended, message.life)
        if message.life >= self.life:
            self._wanted = max(self._wanted, message.life + 1)
            self._renew()

    def on_queue_pair(self, message: QueuePairReady) -> None:
        """The peer made a queue pair."""
        if message.life < self.life:
            return
        self._theirs = message
        if message.life > self.life:
            self._wanted = max(self._wanted, message.life)
            self._renew()
        else:
            self._connect()

    def on_ready(self, message: RailReady) -> None:
        """The peer's queue pair is connected to ours."""
        self._ready_life = message.life
        self._rise()

    def _renew(self) -> None:
        self.up = False
        if self.queue_pair is not None:
            self.queue_pair.fail()
        if not self._closed and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.get_running_loop().create_task(self._renewing())

    async def _renewing(self) -> None:
        while self.life < self._wanted:
            await self._fence()
            await self._until_due()
            self.life = self._wanted
            self._connected = False
            try:
                self.queue_pair = self.device.queue_pair(self._shape, self._complete)
            except TandemError as error:
                self._user.rail_lost(self, error)
                if self.device.failure is not None:
                    return
                continue
            pair = self.queue_pair
            self.device.pairs_replaced += self.life > 1
            self._user.send(QueuePairReady(self.index, self.life, pair.number, pair.psn))
            self._connect()

    async def _until_due(self) -> None:
        delay_s, self._delay_s = self._delay_s, 0.0
        if delay_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self.device.changed.wait()
        await self.device.until_active()

    def _connect(self) -> None:
        pair, theirs = self.queue_pair, self._theirs
        if pair is None or theirs is None or theirs.life != self.life or self._connected:
            return
        try:
            pair.connect(self._peer, theirs)
        except TandemError as error:
            self._user.rail_lost(self, error)
            return
        self._connected = True
        self._user.send(RailReady(self.index, self.life))
        self._rise()

    def _rise(self) -> None:
        if self._connected and self._ready_life == self.life and self._wanted == self.life and not self.up:
            self.up = True
            _log.debug("rail %d of %s: life %d is up", self.index, self.device.name, self.life)
            self._user.rail_up(self)

    async def _fence(self) -> None:
        self.up = False
        pair, self.queue_pair = self.queue_pair, None
        if pair is None:
            return
        pair.fail()
        self._flushing = pair
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await pair.flushed.wait()
        except TimeoutError:
            _log.debug("rail %d of %s: not all was flushed in time", self.index, self.device.name)
        finally:
            pair.close()
            self._flushing = None
            if not self._closed:
                self._user.send(RailDown(self.index, self.life))
            self._user.rail_down(self)

    def _complete(self, completion: Completion) -> None:
        self._user.completed(self, completion)  # while it is fenced too: what has landed counts
