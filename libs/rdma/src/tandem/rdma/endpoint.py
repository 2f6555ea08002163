"""The endpoint of a rank: lanes of `tcp`, `cma` and `verbs` behind one door. `open_endpoint` is the way in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import (
    U64,
    Accepted,
    Buffer,
    Endpoint,
    EndpointSettings,
    OnEvent,
    ProviderOffer,
    ReceiverLane,
)
from tandem.rdma.choice import choose
from tandem.rdma.cma import CmaSink, CmaSource
from tandem.rdma.door import Door, knock_at, within
from tandem.rdma.fake import FakeEndpoint
from tandem.rdma.faults import Faults
from tandem.rdma.grants import GrantTable
from tandem.rdma.host import OwnProcess, host_identity, let_peers_pull, require_process, why_no_pull
from tandem.rdma.memory import Memory
from tandem.rdma.receiver import LiveReceiverLane, ReceiverParts, Sink
from tandem.rdma.sender import LiveSenderLane, SenderParts, Source
from tandem.rdma.tcp import TcpSink, TcpSource
from tandem.rdma.verbs.provider import VerbsProvider
from tandem.rdma.verbs.receiver import VerbsReceiverLane
from tandem.rdma.verbs.sender import VerbsSenderLane
from tandem.rdma.wire import MAX_STREAMS, TOKEN_BYTES

_SOURCES: dict[str, Callable[[], Source]] = {"cma": CmaSource, "tcp": TcpSource}
_NAMES = ("cma", "tcp", "verbs")

_SenderLane = LiveSenderLane | VerbsSenderLane
_ReceiverLane = LiveReceiverLane | VerbsReceiverLane

_log = logging.getLogger(__name__)


def open_endpoint(buffers: Sequence[Buffer], settings: EndpointSettings | None = None) -> Endpoint:
    """Makes the endpoint of one rank over its memory; `start` it on the event loop.

    Raises TandemError(INVALID_ARGUMENT) for settings or buffers that are out of range.
    """
    settings = settings or EndpointSettings()
    memory = Memory(buffers)
    if settings.providers == ("fake",):
        return FakeEndpoint(memory, settings)
    unknown = [name for name in settings.providers if name not in _NAMES]
    if unknown or not settings.providers:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"providers {list(settings.providers)}: choose among {', '.join(_NAMES)}, or fake alone",
            field="providers",
        )
    if any(memory.dmabufs) and (settings.providers != ("verbs",) or settings.checksum):
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            "memory of a GPU is moved by the provider verbs alone, and without checksums",
            field="providers",
        )
    if not 1 <= settings.tcp_streams <= MAX_STREAMS:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"tcp_streams is {settings.tcp_streams}; 1..{MAX_STREAMS} are allowed",
            field="tcp_streams",
        )
    return LiveEndpoint(memory, settings)


class LiveEndpoint:
    """One memory and its lanes. Listens from the first `accept` on, so that a receiver listens nowhere."""

    def __init__(self, memory: Memory, settings: EndpointSettings) -> None:
        self._memory = memory
        self._settings = settings
        self._door: Door | None = None
        self._lanes: set[_SenderLane | _ReceiverLane] = set()
        self._identity = ""
        self._process: OwnProcess | None = None
        self._no_pull = "cma is not among this side's providers"
        self._verbs = VerbsProvider(memory, settings) if "verbs" in settings.providers else None
        self._no_verbs = "verbs is not among this side's providers"
        self._running = False

    async def start(self) -> None:
        """Learns what this host allows. Call once, on the event loop."""
        self._running = True
        if "cma" in self._settings.providers:
            self._identity = host_identity()
            self._process = OwnProcess()
            self._no_pull = why_no_pull()
            if self._no_pull:
                _log.info("this side can't receive over cma: %s", self._no_pull)
        if self._verbs is not None:
            self._no_verbs = self._verbs.start()
            if self._no_verbs:
                _log.info("this side can't use verbs: %s", self._no_verbs)
        if self._settings.faults is not None:
            _log.warning("FAULTS ARE PLANTED in this endpoint: %s", self._settings.faults)

    @property
    def _why_no_verbs(self) -> str:
        """Why verbs can't be used now, '' if they can: devices may fail later on."""
        return self._no_verbs or (self._verbs.failure if self._verbs is not None else "")

    def offer(self) -> list[ProviderOffer]:
        """Receiver: the providers that this side can receive with, best first."""
        return [
            ProviderOffer(
                name=name,
                host_identity=self._identity if name == "cma" else "",
                memory_bytes=self._memory.bytes,
            )
            for name in self._settings.providers
            if not {"cma": self._no_pull, "verbs": self._why_no_verbs}.get(name)
        ]

    def accept(self, offers: Sequence[ProviderOffer], on_event: OnEvent) -> Accepted:
        """Sender: chooses a provider among the receiver's offers. See `Endpoint.accept`."""
        self._require_running()
        choice = choose(self._settings.providers, offers, self._identity, self._why_no_verbs)
        name = choice.offer.name
        if self._door is None:
            self._door = Door(
                self._settings.bind_host, self._settings.advertise_host, self._settings.connect_timeout_ms
            )
        if name == "cma" and let_peers_pull():
            _log.info("cma: processes of this user may read this one, as kernel.yama.ptrace_scope 1 forbids otherwise")
        lane = self._sender_lane(name, on_event)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._door.expect(token, lane)
        self._lanes.add(lane)
        _log.info("provider %s chosen (%s)", name, choice.reason)
        answer = ProviderOffer(
            name=name,
            address=self._door.address,
            token=token,
            host_identity=self._identity if name == "cma" else "",
            cma=self._process.shown if name == "cma" and self._process else None,
            memory_bytes=self._memory.bytes,
            reason=choice.reason,
        )
        return Accepted(answer, lane)

    def _sender_lane(self, name: str, on_event: OnEvent) -> _SenderLane:
        if name == "verbs" and self._verbs is not None:
            return self._verbs.sender_lane(on_event, self._sender_gone)
        streams = self._settings.tcp_streams if name == "tcp" else 1
        parts = SenderParts(name, self._memory, self._settings, _SOURCES[name](), streams)
        return LiveSenderLane(parts, on_event, self._sender_gone)

    async def connect(self, answer: ProviderOffer, on_event: OnEvent) -> ReceiverLane:
        """Receiver: opens the lane that the sender chose. See `Endpoint.connect`; NOT_SUPPORTED is raised for a
        provider that this side did not offer, or if the kernel forbids the pull: `offer` leaves cma out from then on.
        """
        self._require_running()
        if answer.name not in {offer.name for offer in self.offer()}:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"provider {answer.name!r} was not offered")
        if answer.name == "cma":
            self._check_process(answer)
        opening = self._open_verbs(answer, on_event) if answer.name == "verbs" else self._open_socks(answer, on_event)
        lane: _ReceiverLane = await within(self._settings.connect_timeout_ms, opening, answer.address)
        self._lanes.add(lane)
        _log.info("%s lane to %s is open (%s)", answer.name, answer.address, answer.reason)
        return lane

    @property
    def queue_pairs_replaced(self) -> int:
        """See `Endpoint.queue_pairs_replaced`."""
        return self._verbs.queue_pairs_replaced if self._verbs is not None else 0

    async def close(self) -> None:
        """Closes every lane and frees everything. Idempotent."""
        self._running = False
        await asyncio.gather(*(lane.close() for lane in list(self._lanes)))
        if self._door is not None:
            await self._door.close()
        if self._verbs is not None:
            await self._verbs.close()

    async def _open_verbs(self, answer: ProviderOffer, on_event: OnEvent) -> VerbsReceiverLane:
        assert self._verbs is not None  # it was offered
        sock, _, _ = await knock_at(answer.address, answer.token, 0)
        return await self._verbs.receiver_lane(sock, on_event, self._lanes.discard)

    async def _open_socks(self, answer: ProviderOffer, on_event: OnEvent) -> LiveReceiverLane:
        socks, sink = await self._dial(answer)
        parts = ReceiverParts(
            answer.name, self._memory, self._settings, sink, GrantTable(self._memory), Faults(self._settings.faults)
        )
        return LiveReceiverLane(parts, socks, on_event, self._lanes.discard)

    async def _dial(self, answer: ProviderOffer) -> tuple[list[socket.socket], Sink]:
        socks: list[socket.socket] = []
        try:
            sock, welcome, table = await knock_at(answer.address, answer.token, 0)
            socks.append(sock)
            for stream in range(1, welcome.streams):
                socks.append((await knock_at(answer.address, answer.token, stream))[0])
            return socks, self._sink(answer, table)
        except BaseException:
            for sock in socks:
                sock.close()
            raise

    def _sink(self, answer: ProviderOffer, table: U64) -> Sink:
        if answer.name == "tcp":
            return TcpSink()
        if answer.cma is None:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the sender shows no process to read")
        self._check_process(answer)  # once more: the connection now says that it lives
        return CmaSink(answer.cma.pid, Memory([Buffer(int(base), int(size)) for base, size in table]))

    def _check_process(self, answer: ProviderOffer) -> None:
        if answer.cma is None or answer.host_identity != self._identity:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "cma was chosen for a process that can't be read")
        try:
            require_process(answer.cma)
        except TandemError as error:
            if error.reason is ErrorReason.NOT_SUPPORTED:
                self._no_pull = error.message
                _log.warning("cma will not be offered any more: %s", error.message)
            raise

    def _sender_gone(self, lane: _SenderLane) -> None:
        self._lanes.discard(lane)
        if self._door is not None:
            self._door.forget(lane)

    def _require_running(self) -> None:
        if not self._running:
            raise TandemError(ErrorReason.INTERNAL, "the endpoint is not started, or closed")
