"""How a lane is chosen and opened, and what is refused at the door."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace

import numpy as np
import pytest

from tandem.core.errors import TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import Endpoint, EndpointSettings, LaneLost, ProviderOffer, open_endpoint
from tandem.rdma.wire import WELCOME_BYTES, Frame, FrameKind, Knock, Welcome
from tests.support.rdma.pools import buffers_of, random_pool, u64


def ignore(event: object) -> None:
    """An event that a test does not care for."""


@pytest.fixture
async def endpoints():  # type: ignore[no-untyped-def]
    """Makes endpoints, and closes them."""
    made: list[Endpoint] = []
    pools = []

    async def make(*providers: str, **settings: object) -> Endpoint:
        pools.append(random_pool(1 << 20, len(pools)))
        endpoint = open_endpoint(buffers_of(pools[-1]), EndpointSettings(providers=providers, **settings))  # type: ignore[arg-type]
        await endpoint.start()
        made.append(endpoint)
        return endpoint

    yield make
    for endpoint in made:
        await endpoint.close()


async def test_the_best_common_provider_is_chosen_and_the_reason_told(endpoints, caplog) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level("INFO", "tandem.rdma")
    sender, receiver = await endpoints("cma", "tcp"), await endpoints("cma", "tcp")
    assert [offer.name for offer in receiver.offer()] == ["cma", "tcp"]
    near = sender.accept(receiver.offer(), ignore).answer
    assert (near.name, near.cma is not None) == ("cma", True)
    far = sender.accept([replace(offer, host_identity="elsewhere") for offer in receiver.offer()], ignore).answer
    assert far.name == "tcp"
    assert far.cma is None
    assert "not cma: the two processes do not share host" in far.reason
    assert far.reason in caplog.text
    only_tcp = await endpoints("tcp")
    assert sender.accept(only_tcp.offer(), ignore).answer.name == "tcp"


async def test_no_common_provider_names_both_sides(endpoints) -> None:  # type: ignore[no-untyped-def]
    sender = await endpoints("cma")
    with pytest.raises(TandemError, match=r"NOT_SUPPORTED.*sender has \[cma\].*receiver offers \[tcp\]"):
        sender.accept([ProviderOffer(name="tcp")], ignore)


@pytest.mark.parametrize("lie", ["nonce", "start_ticks", "pid", "nonce_address"])
async def test_cma_reads_nobody_but_the_process_that_showed_itself(endpoints, lie: str) -> None:  # type: ignore[no-untyped-def]
    sender, receiver = await endpoints("cma"), await endpoints("cma")
    answer = sender.accept(receiver.offer(), ignore).answer
    wrong = {"nonce": bytes(16), "start_ticks": answer.cma.start_ticks + 1, "pid": 1, "nonce_address": 4096}[lie]
    forged = replace(answer, cma=replace(answer.cma, **{lie: wrong}))
    with pytest.raises(TandemError, match=r"LINK_LOST|NOT_SUPPORTED"):
        await receiver.connect(forged, ignore)


async def test_cma_is_refused_without_a_process_or_from_another_host(endpoints) -> None:  # type: ignore[no-untyped-def]
    sender, receiver = await endpoints("cma"), await endpoints("cma")
    answer = sender.accept(receiver.offer(), ignore).answer
    for forged in (replace(answer, cma=None), replace(answer, host_identity="elsewhere")):
        with pytest.raises(TandemError, match="PROTOCOL_VIOLATION"):
            await receiver.connect(forged, ignore)


async def test_a_provider_that_was_not_offered_is_refused(endpoints) -> None:  # type: ignore[no-untyped-def]
    sender, receiver = await endpoints("cma"), await endpoints("tcp")
    answer = sender.accept((await endpoints("cma")).offer(), ignore).answer
    with pytest.raises(TandemError, match="NOT_SUPPORTED"):
        await receiver.connect(answer, ignore)


async def test_a_lane_that_nobody_opens_is_given_up(endpoints) -> None:  # type: ignore[no-untyped-def]
    sender = await endpoints("tcp", connect_timeout_ms=50)
    lost: asyncio.Queue[object] = asyncio.Queue()
    accepted = sender.accept([ProviderOffer(name="tcp")], lost.put_nowait)
    transfer = accepted.lane.write(u64(0), u64(0), u64(1), GrantId(1), ChunkIndex(0))
    assert (await asyncio.wait_for(transfer.wait(), 5)).status.value == "failed"
    assert isinstance(lost.get_nowait(), LaneLost)


async def test_a_sender_that_does_not_answer_is_given_up(endpoints) -> None:  # type: ignore[no-untyped-def]
    receiver = await endpoints("tcp", connect_timeout_ms=50)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = ProviderOffer(name="tcp", address=f"127.0.0.1:{silent.getsockname()[1]}", token=bytes(16))
        with pytest.raises(TandemError, match=r"LINK_LOST.*50 ms"):
            await receiver.connect(answer, ignore)
    with pytest.raises(TandemError, match=r"LINK_LOST.*can't be reached"):
        await receiver.connect(answer, ignore)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff" * 200, id="noise"),
        pytest.param(Frame(FrameKind.PIECE, 1, 100).pack(), id="a piece of nothing"),
        pytest.param(Frame(FrameKind.OPEN, 1, 1, ranges=2**32 - 1).pack(), id="too many ranges"),
        pytest.param(Frame(FrameKind.OPEN, 1, 9, 1, 1).pack() + u64(0, 8).tobytes(), id="a wrong sum"),
        pytest.param(
            Frame(FrameKind.OPEN, 1, 8, 1, 1).pack() + u64(0, 8).tobytes() + Frame(FrameKind.PIECE, 1, 9).pack(),
            id="a piece that is too large",
        ),
    ],
)
async def test_a_peer_that_breaks_the_protocol_loses_the_lane(endpoints, garbage: bytes) -> None:  # type: ignore[no-untyped-def]
    receiver = await endpoints("tcp")
    events: asyncio.Queue[object] = asyncio.Queue()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Welcome(True, 1, 0).pack())
        await go.wait()
        writer.write(garbage)
        await reader.read()
        writer.close()

    go = asyncio.Event()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        lane = await receiver.connect(ProviderOffer(name="tcp", address=address, token=bytes(16)), events.put_nowait)
        lane.grant(GrantId(1), u64(0), u64(1000))
        go.set()
        event = await asyncio.wait_for(events.get(), 5)
        assert isinstance(event, LaneLost)
        assert event.error.reason.value == "PROTOCOL_VIOLATION"


async def test_a_half_sent_frame_that_cannot_end_closes_the_lane(endpoints) -> None:  # type: ignore[no-untyped-def]
    """A receiver that never reads: the first piece is larger than what the kernel takes."""
    loop = asyncio.get_running_loop()
    pool = np.zeros(64 << 20, np.uint8)
    sender = open_endpoint(buffers_of(pool), EndpointSettings(providers=("tcp",), fence_ms=100))
    await sender.start()
    lost: asyncio.Queue[LaneLost] = asyncio.Queue()
    accepted = sender.accept([ProviderOffer(name="tcp")], lost.put_nowait)  # type: ignore[arg-type]
    host, port = accepted.answer.address.split(":")
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        await loop.sock_connect(stuck, (host, int(port)))
        await loop.sock_sendall(stuck, Knock(accepted.answer.token, 0).pack())
        assert len(await loop.sock_recv(stuck, WELCOME_BYTES)) == WELCOME_BYTES
        transfer, other = (
            accepted.lane.write(u64(0), u64(0), u64(pool.size), GrantId(1), ChunkIndex(n)) for n in range(2)
        )
        peeked = b""
        async with asyncio.timeout(5):
            while len(peeked) < 500:  # the announcements are shorter than that: the first piece is under way
                with contextlib.suppress(BlockingIOError):
                    peeked = stuck.recv(1 << 16, socket.MSG_PEEK)
                await asyncio.sleep(0)
        await asyncio.wait_for(transfer.cancel(), 5)
        assert (await transfer.wait()).status.value == "cancelled"
        assert (await other.wait()).status.value == "failed"
        assert "did not end in time" in lost.get_nowait().error.message
    await sender.close()


async def test_strangers_at_the_door_do_not_disturb(endpoints) -> None:  # type: ignore[no-untyped-def]
    sender, receiver = await endpoints("tcp"), await endpoints("tcp")
    answer = sender.accept(receiver.offer(), ignore).answer
    host, port = answer.address.split(":")
    strangers = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
    for _, writer in strangers:
        writer.write(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    lane = await receiver.connect(answer, ignore)
    assert lane.provider == "tcp"
    for reader, writer in strangers:
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize("settings", [{"providers": ()}, {"providers": ("magic",)}, {"tcp_streams": 0}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    pool = np.zeros(100, np.uint8)
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        open_endpoint(buffers_of(pool), EndpointSettings(**settings))  # type: ignore[arg-type]
