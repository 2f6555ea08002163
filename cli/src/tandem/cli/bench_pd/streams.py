"""A lean client of /generate, so that little of what is measured is the client's own work."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from tandem.cli.bench_pd.numbers import Timing
from tandem.core.errors import ErrorReason, TandemError

TIMEOUT_S: Final = 120.0
LINE_LIMIT: Final = 1 << 20


def _nothing() -> None:
    pass


async def time_stream(
    address: str, input_ids: Sequence[int], new_tokens: int, on_first: Callable[[], None] = _nothing
) -> Timing:
    """Streams one greedy answer of exactly new_tokens tokens. address: host:port. Raises TandemError.

    on_first: called when its first token is there.
    """
    times: list[float] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await _connect(address)
            try:
                started = time.perf_counter()
                writer.write(_request(address, input_ids, new_tokens))
                async for event in _events(reader):
                    now, count = time.perf_counter(), _tokens(event)
                    if not times and count:
                        on_first()
                    # Tokens that came in one event came at one time.
                    times += [now] * (count - len(times))
            finally:
                writer.close()
    except TimeoutError:
        text = f"{address} sent {len(times)} of {new_tokens} tokens in {TIMEOUT_S:.0f} s"
        raise TandemError(ErrorReason.DEADLINE_EXCEEDED, text) from None
    if len(times) != new_tokens:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{address} sent {len(times)} of {new_tokens} tokens")
    gaps = tuple((after - before) * 1000 for before, after in itertools.pairwise(times))
    return Timing((times[0] - started) * 1000, gaps, len(times), (times[-1] - started) * 1000)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    try:
        return await asyncio.open_connection(host, int(port), limit=LINE_LIMIT)
    except OSError as error:
        raise TandemError(ErrorReason.NO_WORKER, f"{address} can't be reached: {error}") from error


def _request(address: str, input_ids: Sequence[int], new_tokens: int) -> bytes:
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": list(input_ids), "sampling_params": sampling, "stream": True}).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of a chunked response."""
    status = (await reader.readline()).decode(errors="replace").strip()
    while (await reader.readline()).strip():
        pass
    if " 200 " not in f"{status} ":
        raise TandemError(ErrorReason.ENGINE_FAILED, f"{status}: {(await reader.read(2000)).decode(errors='replace')}")
    rest = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *events, rest = rest.split(b"\n\n")
        for event in events:
            text = event.removeprefix(b"data: ").strip()
            if text and text != b"[DONE]":
                yield json.loads(text)


def _tokens(event: dict[str, Any]) -> int:
    """Tokens of the answer so far."""
    if "error" in event:
        raise TandemError(ErrorReason.ENGINE_FAILED, f"the stream failed: {event['error']}")
    count: int = event["meta_info"]["completion_tokens"]
    return count
