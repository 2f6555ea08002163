"""The sending process of the benchmark: takes one JSON command per line and answers each with one line."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import statistics
import sys
import time
from typing import Any

import numpy as np

from tandem.core.ids import ChunkIndex
from tandem.rdma.api import Direction, Endpoint, ProviderOffer, SenderLane, TransferStatus
from tandem.rdma.bench.pages import GRANT, Way, make_pool, open_pool, scattered


class Sender:
    """A pool, and its lanes by (provider, checksum)."""

    def __init__(self, total_bytes: int, streams: int) -> None:
        self._pool = make_pool(total_bytes, 1)
        self._streams = streams
        self._endpoints: list[Endpoint] = []
        self._lanes: dict[tuple[str, bool], SenderLane] = {}
        self._plain: socket.socket | None = None

    async def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Does what one command says."""
        match command["do"]:
            case "accept":
                way = Way(command["provider"], command["checksum"], self._streams, tuple(command["devices"]))
                return await self._accept(way, command["host_identity"])
            case "write":
                return await self._write((command["provider"], command["checksum"]), command["page_bytes"])
            case "write_pages":
                return await self._write_pages(command["page_bytes"], command["count"])
            case "dial_plain":
                self._plain = socket.create_connection(("127.0.0.1", command["port"]))
                return {}
            case _:
                return self._send_plain()

    async def close(self) -> None:
        """Ends everything."""
        for endpoint in self._endpoints:
            await endpoint.close()
        if self._plain is not None:
            self._plain.close()

    async def _accept(self, way: Way, host_identity: str) -> dict[str, Any]:
        endpoint = open_pool(self._pool, way, Direction.SEND)
        await endpoint.start()
        self._endpoints.append(endpoint)
        offer = ProviderOffer(name=way.provider, host_identity=host_identity)
        accepted = endpoint.accept([offer], lambda event: None)
        self._lanes[way.provider, way.checksum] = accepted.lane
        answer = accepted.answer
        shown = answer.cma
        return {
            "address": answer.address,
            "token": answer.token.hex(),
            "cma": [shown.pid, shown.start_ticks, shown.nonce_address, shown.nonce.hex()] if shown else None,
        }

    async def _write(self, lane: tuple[str, bool], page_bytes: int) -> dict[str, Any]:
        src = scattered(self._pool.nbytes, page_bytes, 1)
        dst = scattered(self._pool.nbytes, page_bytes, 2)
        lengths = np.full(src.size, page_bytes, np.uint64)
        began = time.perf_counter()
        result = await self._lanes[lane].write(src, dst, lengths, GRANT, ChunkIndex(0)).wait()
        elapsed_s = time.perf_counter() - began
        if result.status is not TransferStatus.DONE:
            raise result.error or RuntimeError(f"the write ended as {result.status.value}")
        return {"elapsed_s": elapsed_s, "checksum": result.checksum}

    async def _write_pages(self, page_bytes: int, count: int) -> dict[str, Any]:
        """Single pages over verbs, one after another, without a checksum."""
        lane, zero, length = self._lanes["verbs", False], np.zeros(1, np.uint64), np.array([page_bytes], np.uint64)
        taken_us = []
        for number in range(count):
            began = time.perf_counter()
            result = await lane.write(zero, zero, length, GRANT, ChunkIndex(number)).wait()
            taken_us.append((time.perf_counter() - began) * 1e6)
            if result.status is not TransferStatus.DONE:
                raise result.error or RuntimeError(f"a write ended as {result.status.value}")
        return {"median_us": statistics.median(taken_us)}

    def _send_plain(self) -> dict[str, Any]:
        if self._plain is None:
            raise RuntimeError("dial_plain comes first")
        began = time.perf_counter()
        self._plain.sendall(self._pool.data)
        self._plain.recv(1)
        return {"elapsed_s": time.perf_counter() - began}


async def main(total_bytes: int, streams: int) -> None:
    """Serves commands until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    sender = Sender(total_bytes, streams)
    print(json.dumps({}), flush=True)
    try:
        while line := await commands.readline():
            print(json.dumps(await sender.run(json.loads(line))), flush=True)
    finally:
        await sender.close()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the receiver hangs up at the end
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
