"""Decode: admits rooms by pages, checks what landed, and hands out one token per step to every running room."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.room.events import Why
from tandem.engine.mock import answer as answers
from tandem.engine.mock import arithmetic
from tandem.engine.mock.answer import Answer
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.mock.legs import Leg, LegBook, Stage
from tandem.engine.mock.memory import Metadata, RankMemory, digest_over
from tandem.engine.mock.rank_port import ReceiverPort
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import Delta, Finish, Job, TokenLogprob

_Leg = Leg[ReceiverPort]


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A room that generates."""

    leg: _Leg
    answer: Answer
    chain: int
    cached_tokens: int


class DecodeScheduler:
    """Continuous batching: rooms join and leave the batch between two steps."""

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
        self._batch: dict[int, _Sequence] = {}
        self._work = asyncio.Event()
        self._admitting = False

    @property
    def running(self) -> int:
        """Rooms that generate."""
        return len(self._batch)

    def check(self, job: Job) -> None:
        """Raises TandemError(POOL_EXHAUSTED) for a room that can never have enough pages."""
        need = self._leases.pages_for(self._tokens(job))
        if need > self._leases.pages.total:
            raise TandemError(
                ErrorReason.POOL_EXHAUSTED,
                f"prompt and answer need {need} pages, the pool has {self._leases.pages.total}",
                field="max_new_tokens",
            )

    def _tokens(self, job: Job) -> int:
        return min(len(job.input_ids) + job.sampling.max_new_tokens, self._settings.context_tokens)

    async def run(self) -> None:
        """Steps for as long as the engine lives; sleeps while nothing runs."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            if not self._batch:
                self._work.clear()
                await self._work.wait()
            cost_us = self._settings.decode_us_per_step + len(self._batch) * self._settings.decode_us_per_sequence
            due = max(due, loop.time()) + cost_us / 1e6
            await asyncio.sleep(due - loop.time())
            for sequence in tuple(self._batch.values()):
                self._emit(sequence)

    def _changed(self, leg: _Leg) -> None:
        if leg.stage is Stage.CONNECTING and leg.handles.ready:
            leg.stage = Stage.QUEUED
            self._queue[leg.room] = leg
            self._admit_soon()
        elif leg.stage is Stage.MOVING and leg.handles.landed:
            self._begin(leg)

    def _gone(self, leg: _Leg) -> None:
        self._queue.pop(leg.room, None)
        self._batch.pop(leg.room, None)
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
            lease = self._leases.take(self._tokens(leg.job), leg.job.input_ids)
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
        chain = arithmetic.chain_of(digest, metadata.first_token)
        later = arithmetic.later_tokens(chain, self._tokens(leg.job) - prompt - 1, self._vocabulary.choices)
        answer = answers.compose([metadata.first_token, *later], leg.job.sampling, self._vocabulary)
        sequence = _Sequence(leg, answer, chain, metadata.cached_tokens)
        leg.stage = Stage.RUNNING
        self._batch[leg.room] = sequence
        self._work.set()
        self._emit(sequence)

    def _read_rows(self, leg: _Leg, lease: Lease) -> tuple[Metadata, Why | None]:
        rows = [memory.read_row(lease.row) for memory in self._memories]
        expected = Metadata(leg.room, rows[0].first_token, len(leg.job.input_ids), rows[0].cached_tokens)
        for row in rows:
            if row != expected or row.first_token >= len(self._vocabulary.pieces):
                return row, Why(ErrorReason.TRANSFER_FAILED, f"metadata of room {row.room} came for room {leg.room}")
        return rows[0], None

    def _emit(self, sequence: _Sequence) -> None:
        leg, answer = sequence.leg, sequence.answer
        if leg.stage is not Stage.RUNNING:
            return  # another room's sink has just aborted it
        place = leg.emitted
        leg.emitted += 1
        token, options = answer.tokens[place], leg.job.logprobs
        logprobs: tuple[TokenLogprob, ...] = ()
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        if options is not None:
            logprobs = (answers.logprob_of(sequence.chain, place, token, options, self._vocabulary),)
            if place == 0:
                prompt_logprobs = answers.prompt_logprobs(leg.job.input_ids, options, self._vocabulary)
        if leg.emitted < len(answer.tokens):
            leg.sink(Delta(leg.room, (token,), answer.texts[place], logprobs, prompt_logprobs))
            return
        finish = Finish(
            answer.kind,
            len(leg.job.input_ids),
            leg.emitted,
            sequence.cached_tokens,
            answer.matched_text,
            answer.matched_token_id,
        )
        self._compute(leg, answer.tokens)
        self.book.end(leg, Delta(leg.room, (token,), answer.texts[place], logprobs, prompt_logprobs, finish))

    def _compute(self, leg: _Leg, answer: list[int]) -> None:
        """Where KV is kept: that of the answer, as of a prompt that goes on with it; its last token was never fed."""
        lease, prompt = leg.lease, leg.job.input_ids
        if lease is None or not self._settings.keep_prefixes:
            return
        leg.computed = [*prompt, *answer[:-1]]
        seeds = arithmetic.prompt_seeds(leg.computed, self._powers)[len(prompt) :]
        for memory in self._memories:
            memory.write(lease.pages, len(prompt), seeds, range(self._settings.layers))
