"""Clients that take nothing, send too much or too slowly, speak TLS, or are pages in a browser; on real sockets."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from tandem.gateway.web import listening
from tandem.v1 import session_pb2
from tests.support.certificates import Authority
from tests.support.gateway.cluster import Cluster, cluster
from tests.support.gateway.fake_worker import MODEL, Send, say_nothing

BODY = b'{"model": "tandem-tiny", "prompt": "hello", "max_tokens": 500, "stream": true}'
PROMPT = {"model": MODEL, "prompt": "hello", "max_tokens": 4}


async def connect(now: Cluster) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that reads little by itself."""
    host, _, port = now.gateway.http_address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 10)


async def ask(now: Cluster) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for a stream and does not read it."""
    reader, writer = await connect(now)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return reader, writer


async def until_idle(now: Cluster) -> None:
    """Returns when no sequence has a place."""
    for _ in range(3000):
        if "tandem_gateway_sequences_in_flight 0.0" in (await now.http.get("/metrics")).text:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a sequence keeps its place")


async def flood(submit: session_pb2.Submit, send: Send) -> None:
    """Says more than any connection and the buffer of a stream hold, as fast as it is taken."""
    for _ in range(3000):
        send(session_pb2.Delta(room=submit.room, token_ids=[300], text="x" * 10_000))
        await asyncio.sleep(0)


async def much_then_nothing(submit: session_pb2.Submit, send: Send) -> None:
    """Says more than a connection holds, and then no more."""
    for _ in range(800):
        send(session_pb2.Delta(room=submit.room, token_ids=[300], text="x" * 10_000))
        await asyncio.sleep(0)


async def test_who_is_too_far_behind_is_cut_off_and_both_legs_end() -> None:
    settings = {"stream_buffer_tokens": 64, "client_stall_ms": 600_000}
    async with cluster(prefill=[say_nothing], decode=[flood], **settings) as now:
        _, writer = await ask(now)
        for one in (now.prefills[0], now.decodes[0]):
            await one.wait_until(lambda worker: len(worker.cancels) == 1)
        await until_idle(now)
        writer.close()


async def test_who_takes_nothing_any_more_is_ended_by_the_kernel() -> None:
    """The buffer of its stream has room, so that nothing but its connection tells."""
    settings = {"stream_buffer_tokens": 100_000, "client_stall_ms": 300}
    async with cluster(prefill=[say_nothing], decode=[much_then_nothing], **settings) as now:
        _, writer = await ask(now)
        for one in (now.prefills[0], now.decodes[0]):
            await one.wait_until(lambda worker: len(worker.cancels) == 1)
        await until_idle(now)
        writer.close()


async def test_a_body_that_does_not_come_is_408() -> None:
    async with cluster(read_timeout_ms=100) as now:
        reader, writer = await connect(now)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b"\r\n")
        assert answer == b"HTTP/1.1 408 Request Timeout\r\n"
        writer.close()


async def test_headers_without_an_end_are_refused() -> None:
    async with cluster() as now:
        reader, writer = await connect(now)
        writer.write(b"GET /health HTTP/1.1\r\nHost: here\r\nX-Long: ")
        with pytest.raises(OSError):  # noqa: PT012 - somewhere on the way
            async with asyncio.timeout(30):
                while True:
                    writer.write(b"x" * 10_000)
                    await writer.drain()
        assert (await now.http.get("/health")).status_code == 200
        del reader


async def test_headers_that_are_large_and_whole_are_taken() -> None:
    async with cluster() as now:
        assert (await now.http.get("/health", headers={"X-Long": "x" * 30_000})).status_code == 200
        assert (await now.http.get("/health", headers={"X-Long": "x" * 30_000})).status_code == 200


@pytest.mark.parametrize(("sent", "told"), [(b"", b""), (b"GET /health HT", b"HTTP/1.1 408")])
async def test_who_says_nothing_or_half_a_request_is_let_go(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, told: bytes
) -> None:
    monkeypatch.setattr(listening, "HEADERS_TIMEOUT_S", 0.1)
    async with cluster() as now:
        reader, writer = await connect(now)
        writer.write(sent)
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(told)
        writer.close()


@pytest.mark.openssl
async def test_the_port_speaks_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = authority.issue("gateway", ["IP:127.0.0.1"])
    async with cluster(http_cert_file=mine.cert_file, http_key_file=mine.key_file) as now:
        trusted = ssl.create_default_context(cafile=str(authority.ca_file))
        async with httpx.AsyncClient(verify=trusted) as client:
            answer = await client.post(f"https://{now.gateway.http_address}/v1/completions", json=PROMPT)
            assert answer.json()["choices"][0]["text"] == "t0 t1 t2 t3 "
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://{now.gateway.http_address}/health")
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://{now.gateway.http_address}/health")


async def test_pages_of_other_origins_may_ask_only_where_it_is_allowed() -> None:
    page, other = "https://chat.example.com", "https://evil.example.com"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with cluster(cors_origins=(page,), api_keys=("one",)) as now:
        asked = await now.http.options("/v1/completions", headers={"Origin": page, **preflight})
        assert asked.status_code == 200, "a browser asks without the key"
        assert asked.headers["access-control-allow-origin"] == page
        refused = await now.http.options("/v1/completions", headers={"Origin": other, **preflight})
        assert refused.status_code == 400
        headers = {"Origin": page, "Authorization": "Bearer one"}
        answer = await now.http.post("/v1/completions", json=PROMPT, headers=headers)
        assert answer.headers["access-control-allow-origin"] == page
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        unauthorized = await now.http.post("/v1/completions", json=PROMPT, headers={"Origin": page})
        assert (unauthorized.status_code, unauthorized.headers["access-control-allow-origin"]) == (401, page)
    async with cluster() as now:
        answer = await now.http.post("/v1/completions", json=PROMPT, headers={"Origin": page})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
