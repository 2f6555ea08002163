"""Unified: computes a prompt in its own pages and generates from there. No byte leaves it."""

from __future__ import annotations

import asyncio

from tandem.engine.mock import arithmetic
from tandem.engine.mock.batch import Batch, check_whole, whole_tokens
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.mock.legs import Leg, LegBook, Stage
from tandem.engine.mock.memory import RankMemory, digest_over
from tandem.engine.mock.rank_port import RoomPort
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import Job

_Leg = Leg[RoomPort]


class UnifiedScheduler:
    """One prompt at a time, as on prefill, and a batch, as on decode; chunks and steps take turns on one device.

    Its legs are on no rank, so that they are linked when they are opened, and quiet when they fail.
    """

    def __init__(
        self, settings: MockSettings, leases: Leases, memories: tuple[RankMemory, ...], vocabulary: Vocabulary
    ) -> None:
        self.book: LegBook[RoomPort] = LegBook(leases, settings.max_waiting, self._changed, self._gone)
        self._settings = settings
        self._leases = leases
        self._memories = memories
        self._vocabulary = vocabulary
        self._powers = arithmetic.powers(arithmetic.P, settings.context_tokens)
        self._queue: dict[int, _Leg] = {}
        self._wake = asyncio.Event()
        self._batch = Batch(settings, vocabulary, self.book)

    @property
    def running(self) -> int:
        """Rooms that hold pages."""
        return self._leases.count

    def check(self, job: Job) -> None:
        """Raises TandemError(POOL_EXHAUSTED) for a room that can never have enough pages."""
        check_whole(job, self._leases, self._settings)

    async def run(self) -> None:
        """Computes and generates for as long as the engine lives."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._batch.run())
            both.create_task(self._compute_all())

    async def _compute_all(self) -> None:
        while True:
            leg, lease = await self._next()
            await self._compute(leg, lease)

    async def _next(self) -> tuple[_Leg, Lease]:
        while True:
            leg = next(iter(self._queue.values()), None)
            lease = self._leases.take(whole_tokens(leg.job, self._settings)) if leg is not None else None
            if leg is not None and lease is not None:
                del self._queue[leg.room]
                leg.lease, leg.stage = lease, Stage.MOVING
                return leg, lease
            self._wake.clear()
            await self._wake.wait()

    async def _compute(self, leg: _Leg, lease: Lease) -> None:
        tokens, settings = len(leg.job.input_ids), self._settings
        pages, layers = lease.pages[: self._leases.pages_for(tokens)], range(settings.layers)
        seeds = arithmetic.prompt_seeds(leg.job.input_ids, self._powers)
        for start in range(0, tokens, settings.chunk_tokens):
            end = min(start + settings.chunk_tokens, tokens)
            async with self._batch.device:
                await asyncio.sleep((end - start) * settings.prefill_us_per_token / 1e6)
            if not leg.alive:
                return  # its pages may belong to another room by now
            for memory in self._memories:
                memory.write(pages, start, seeds[start:end], layers)
        for memory in self._memories:
            memory.blank_tail(pages, tokens, layers)
        digest = digest_over(self._memories, pages)
        self._batch.begin(leg, digest, arithmetic.first_token(digest, self._vocabulary.choices), cached_tokens=0)

    def _changed(self, leg: _Leg) -> None:
        if leg.stage is Stage.CONNECTING:
            leg.stage = Stage.QUEUED
            self._queue[leg.room] = leg
            self._wake.set()

    def _gone(self, leg: _Leg) -> None:
        self._queue.pop(leg.room, None)
        self._batch.drop(leg)
        self._wake.set()
