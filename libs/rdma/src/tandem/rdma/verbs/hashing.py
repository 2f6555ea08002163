"""Checksums beside the network: a chunk's bytes are hashed in a thread while the device moves others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tandem.rdma.api import U64
from tandem.rdma.checksum import ChunkHasher
from tandem.rdma.memory import Memory

_THREADS: Final = 2
_STEP_BYTES: Final = 1 << 20
"""A hash that is not wanted any more ends after this much."""


class HashThreads:
    """The threads of one endpoint; they run from the start, so that no lane or chunk changes what runs."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="verbs-hash")
        together = threading.Barrier(_THREADS)
        for _ in range(_THREADS):
            self.pool.submit(together.wait)

    async def close(self) -> None:
        """Ends the threads; every hash has ended by then."""
        await asyncio.to_thread(self.pool.shutdown)


class ChunkHash:
    """Hashes the ranges of a chunk, as far as it is told that the bytes are there. Used on the loop."""

    def __init__(
        self, threads: HashThreads, memory: Memory, offsets: U64, lengths: U64, on_progress: Callable[[], None]
    ) -> None:
        """on_progress: called on the loop whenever the thread has nothing left to do."""
        self.hasher: ChunkHasher | None = None
        """Its state, once something was hashed; nobody changes it while `busy` is False."""
        self.busy = False
        self._threads = threads
        self._source = (memory, offsets, lengths)
        self._on_progress = on_progress
        self._ready = 0
        self._stopped = False
        self._loop = asyncio.get_running_loop()

    @property
    def position(self) -> int:
        """Bytes hashed so far."""
        return self.hasher.position if self.hasher is not None else 0

    def advance(self, position: int) -> None:
        """The bytes up to a position are there."""
        self._ready = position
        if not self.busy and not self._stopped:
            self.busy = True
            self._threads.pool.submit(self._work)

    def stop(self) -> None:
        """Hashes no more; `busy` says whether the thread still reads."""
        self._stopped = True

    def _work(self) -> None:
        if self.hasher is None:
            memory, offsets, lengths = self._source
            self.hasher = ChunkHasher(memory.iov(offsets, lengths))
        while not self._stopped and self.hasher.position < (ready := self._ready):
            self.hasher.update_to(min(ready, self.hasher.position + _STEP_BYTES))
        self._loop.call_soon_threadsafe(self._rest)

    def _rest(self) -> None:
        self.busy = False
        if self.position < self._ready and not self._stopped:
            self.advance(self._ready)
        else:
            self._on_progress()
