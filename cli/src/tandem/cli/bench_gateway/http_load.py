"""The load, over HTTP: `python -m tandem.cli.bench_gateway.http_load`, a process of its own so that its CPU is its own.

Reads one job per line of stdin and answers each with one line of JSON on stdout. It parses no more of an answer than it
needs: where it ends, when a read brought events with text, and how many tokens the last event says that there were: an
event may hold several, as a worker merges what waits. With `quickack` it acknowledges each read at once, as clients
do that have asked the kernel for it; without, as the kernel sees fit.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections import deque
from typing import Any, Final

import uvloop

from tandem.cli.bench_gateway.jobs import Answered, Job, Kind, Outcome, do_jobs

TOKEN: Final = b'"content":"'
COUNT: Final = b'"completion_tokens":'
COUNTED: Final = re.compile(COUNT + rb" *(\d+)[,} ]")
END: Final = b"0\r\n\r\n"
GREETINGS: Final = 1
"""Events of a stream that have a content and no token: the one that names the role."""
SEEN_BYTES: Final = 40
"""Of the reads before, in which what is looked for may have begun: the longest is the count with its number."""


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, *, quickack: bool) -> None:
        self._quickack = quickack
        self._transport: Any = None
        self._socket: socket.socket
        self._done: asyncio.Future[Answered]
        self._head = b""
        self._left = 0
        """Bytes of a whole answer that are to come; -1 of a stream."""
        self._tail = b""
        self._answered = Answered()
        self.began = asyncio.Event()
        """Set once something of a stream is there."""
        self.ended = asyncio.Event()
        """Set once the connection is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has closed, or we have."""
        self.ended.set()
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed in the middle of an answer"))

    def ask(self, request: bytes) -> asyncio.Future[Answered]:
        """Sends a request; what comes of it."""
        self.expect()
        self._answered.asked = time.perf_counter()
        self._transport.write(request)
        return self._done

    def expect(self) -> None:
        """An answer is to come."""
        self._head, self._tail, self._answered = b"", b"", Answered()
        self._done = asyncio.get_running_loop().create_future()

    async def answer(self) -> Answered:
        """The answer, once all of it is there."""
        return await self._done

    @property
    def open(self) -> bool:
        """Whether the server has not closed it."""
        return not self.ended.is_set()

    def close(self) -> None:
        """Leaves, whatever is under way."""
        if hasattr(self, "_done"):
            self._done.cancel()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """One read."""
        now = time.perf_counter()
        if self._quickack:
            # The kernel forgets it again and again.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if self._head:
            self._body(data, now)
            return
        self._tail += data
        head, found, body = self._tail.partition(b"\r\n\r\n")
        if found:
            self._head, self._tail = head, b""
            self._answered.status = int(head[9:12])
            lower = head.lower()
            place = lower.find(b"content-length:")
            self._left = -1 if place < 0 else int(lower[place + 15 :].split(b"\r\n", 1)[0])
            if body:
                self._body(body, now)

    def _body(self, data: bytes, now: float) -> None:
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._answered.reads.append((now, 1))
                self._whole()
            return
        seen = self._tail + data
        tokens = seen.count(TOKEN) - self._tail.count(TOKEN)
        self._tail = seen[-SEEN_BYTES:]
        if COUNT in seen and (found := COUNTED.search(seen)):
            self._answered.told_tokens = int(found[1])
        if tokens:
            if not self._answered.reads:
                tokens -= GREETINGS
                self.began.set()
            # A read with nothing but the greeting is kept too: it is the first chunk.
            self._answered.reads.append((now, tokens))
        if seen.endswith(END):
            self._whole()

    def _whole(self) -> None:
        """The answer is there; its job may have been given up."""
        if not self._done.done():
            self._done.set_result(self._answered)


class HttpLoad:
    """Connections to one address, kept from job to job."""

    def __init__(self, address: str, *, quickack: bool) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._address = address
        self._quickack = quickack
        self._free: list[Client] = []
        self._held: list[Client] = []

    async def _connect(self) -> Client:
        """A connection that nobody uses."""
        # Servers close connections that were idle for long, such as while others had their turns.
        self._free = [client for client in self._free if client.open]
        return self._free.pop() if self._free else await self._new()

    async def _new(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(quickack=self._quickack), self._host, self._port)
        return client

    async def _ask(self, request: bytes) -> Answered:
        """One request on a connection of its own."""
        client = await self._connect()
        answered = await client.ask(request)
        self._free.append(client)
        return answered

    def _request(self, job: Job, *, stream: bool, name: str = "") -> bytes:
        """The bytes of one request. name: its id."""
        body = json.dumps(
            {
                "model": job.model,
                "messages": [{"role": "user", "content": "word " * job.prompt_words}],
                "max_tokens": job.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": stream,
                **({"stream_options": {"include_usage": True}} if stream else {}),
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n" + (f"X-Request-Id: {name}\r\n\r\n" if name else "\r\n")
        )
        return head.encode() + body

    async def _paced(self, job: Job) -> Outcome:
        self._free += await asyncio.gather(*(self._new() for _ in range(job.connections - len(self._free))))
        requests = [self._request(job, stream=stream) for stream in (False, True)]
        began = time.perf_counter()
        tasks = []
        for number in range(job.requests):
            await asyncio.sleep(began + number / job.per_second - time.perf_counter())
            tasks.append(asyncio.create_task(self._ask(requests[number % 2])))
        answers = await asyncio.gather(*tasks)
        whole, streamed = answers[::2], answers[1::2]
        return Outcome.of(whole).with_others(Outcome.of(streamed, tokens=job.tokens))

    async def _streams(self, job: Job) -> Outcome:
        request = self._request(job, stream=True)
        clients = [await self._connect() for _ in range(job.connections)]
        answers = await asyncio.gather(*(client.ask(request) for client in clients))
        self._free += clients
        return Outcome.of(answers, tokens=job.tokens)

    async def _whole(self, job: Job) -> Outcome:
        request, left = self._request(job, stream=False), deque(range(job.requests))
        answers: list[Answered] = []

        async def one() -> None:
            while left:
                left.popleft()
                answers.append(await self._ask(request))

        await asyncio.gather(*(one() for _ in range(job.connections)))
        return Outcome.of(answers)

    async def _hold(self, job: Job) -> Outcome:
        request = self._request(job, stream=True)
        for start in range(0, job.connections, job.at_once):
            some = [await self._new() for _ in range(min(job.at_once, job.connections - start))]
            self._held += some
            for client in some:
                client.ask(request)
            await asyncio.gather(*(client.began.wait() for client in some))
        return Outcome(answers=len(self._held))

    async def _leave(self, job: Job) -> Outcome:
        left: list[tuple[int, int]] = []
        for number in range(job.requests):
            client = await self._new()
            answer = client.ask(self._request(job, stream=True, name=f"leave-{number}"))
            await asyncio.sleep(job.leave_after_ms / 1000)
            left.append((time.time_ns(), time.monotonic_ns()))
            client.close()
            await asyncio.gather(answer, return_exceptions=True)
            await asyncio.sleep(job.pause_ms / 1000)
        return Outcome(answers=len(left), left_ns=left)

    async def run(self, job: Job) -> Outcome:
        """One job."""
        for client in self._held:
            client.close()
        self._held.clear()
        doing = {
            Kind.PACED: self._paced,
            Kind.STREAMS: self._streams,
            Kind.WHOLE: self._whole,
            Kind.HOLD: self._hold,
            Kind.LEAVE: self._leave,
        }
        return await doing[job.kind](job)


async def main() -> None:
    """Command line: the address, and whether to acknowledge at once."""
    await do_jobs(HttpLoad(sys.argv[1], quickack="quickack" in sys.argv[2:]))


if __name__ == "__main__":
    uvloop.run(main())
