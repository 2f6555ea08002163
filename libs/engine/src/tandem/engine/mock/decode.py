"""Decode: admits rooms by pages, checks what landed, and lets the rooms generate."""

from __future__ import annotations

import asyncio

from tandem.core.errors import ErrorReason
from tandem.core.room.events import Why
from tandem.engine.mock import arithmetic
from tandem.engine.mock.batch import Batch, check_whole, whole_tokens
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.mock.legs import Leg, LegBook, Stage
from tandem.engine.mock.memory import Metadata, RankMemory, digest_over
from tandem.engine.mock.rank_port import ReceiverPort
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import Job

_Leg = Leg[ReceiverPort]


class DecodeScheduler:
    """Gives rooms their pages, waits for what lands on them, and lets them into the batch."""

    def __init__(
        self, settings: MockSettings, leases: Leases, memories: tuple[RankMemory, ...], vocabulary: Vocabulary
    ) -> None:
        self.book: LegBook[ReceiverPort] = LegBook(leases, settings.max_waiting, self._changed, self._gone)
        self._settings = settings
        self._leases = leases
        self._memories = memories
        self._vocabulary = vocabulary
        self._powers = arithmetic.powers(arithmetic.P, settings.context_tokens)
        self._queue: dict[int, _Leg] = {}
        self._batch = Batch(settings, vocabulary, self.book, self._keep)
        self._admitting = False

    @property
    def running(self) -> int:
        """Rooms that generate."""
        return self._batch.running

    def check(self, job: Job) -> None:
        """Raises TandemError(POOL_EXHAUSTED) for a room that can never have enough pages."""
        check_whole(job, self._leases, self._settings)

    async def run(self) -> None:
        """Steps for as long as the engine lives; sleeps while nothing runs."""
        await self._batch.run()

    def _changed(self, leg: _Leg) -> None:
        if leg.stage is Stage.CONNECTING and leg.handles.ready:
            leg.stage = Stage.QUEUED
            self._queue[leg.room] = leg
            self._admit_soon()
        elif leg.stage is Stage.MOVING and leg.handles.landed:
            self._begin(leg)

    def _gone(self, leg: _Leg) -> None:
        self._queue.pop(leg.room, None)
        self._batch.drop(leg)
        self._admit_soon()

    def _admit_soon(self) -> None:
        # Not at once: this is called from within changes of rooms, and admitting changes others.
        if self._queue and not self._admitting:
            self._admitting = True
            asyncio.get_running_loop().call_later(self._settings.decode_us_per_admission / 1e6, self._admit)

    def _admit(self) -> None:
        self._admitting = False
        while self._queue:
            leg = next(iter(self._queue.values()))
            lease = self._leases.take(whole_tokens(leg.job, self._settings), leg.job.input_ids)
            if lease is None:
                return
            del self._queue[leg.room]
            leg.lease, leg.stage = lease, Stage.MOVING
            self._offer(leg, lease)

    def _offer(self, leg: _Leg, lease: Lease) -> None:
        held = len(lease.prefix)
        pages = lease.pages[held : self._leases.pages_for(len(leg.job.input_ids))]
        for receiver in leg.handles:
            if leg.alive:
                prefix_tokens = held * self._settings.page_size
                receiver.offer(pages, metadata_row=lease.row, decode_prefix_len=prefix_tokens)

    def _begin(self, leg: _Leg) -> None:
        lease = leg.lease
        assert lease is not None
        metadata, why = self._read_rows(leg, lease)
        if why is not None:
            self.book.fail(leg, why)
            return
        prompt = len(leg.job.input_ids)
        digest = digest_over(self._memories, lease.pages[: self._leases.pages_for(prompt)])
        leg.handles.clear()
        self._batch.begin(leg, digest, metadata.first_token, metadata.cached_tokens)

    def _read_rows(self, leg: _Leg, lease: Lease) -> tuple[Metadata, Why | None]:
        rows = [memory.read_row(lease.row) for memory in self._memories]
        expected = Metadata(leg.room, rows[0].first_token, len(leg.job.input_ids), rows[0].cached_tokens)
        for row in rows:
            if row != expected or row.first_token >= len(self._vocabulary.pieces):
                return row, Why(ErrorReason.TRANSFER_FAILED, f"metadata of room {row.room} came for room {leg.room}")
        return rows[0], None

    def _keep(self, leg: _Leg, answer: list[int]) -> None:
        """Where KV is kept: that of the answer, as of a prompt that goes on with it; its last token was never fed."""
        lease, prompt = leg.lease, leg.job.input_ids
        if lease is None or not self._settings.keep_prefixes:
            return
        leg.computed = [*prompt, *answer[:-1]]
        seeds = arithmetic.prompt_seeds(leg.computed, self._powers)[len(prompt) :]
        for memory in self._memories:
            memory.write(lease.pages, len(prompt), seeds, range(self._settings.layers))
