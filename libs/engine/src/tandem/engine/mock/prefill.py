"""Prefill: computes prompts chunk by chunk, pushes what is finished, keeps the pages until they have landed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.mock import arithmetic
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.mock.legs import Leg, LegBook, Stage
from tandem.engine.mock.memory import Metadata, RankMemory, digest_over
from tandem.engine.mock.rank_port import SenderPort
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import Delta, Finish, FinishKind, Job

_Leg = Leg[SenderPort]


@dataclass(frozen=True, slots=True)
class _Part:
    """What is there to push at a time: the tokens start..end in some layers."""

    start: int
    end: int
    layers: range
    last: bool
    """Whether nothing is left to compute."""


class PrefillScheduler:
    """One prompt at a time, in the order in which decode offered its pages."""

    def __init__(
        self, settings: MockSettings, leases: Leases, memories: tuple[RankMemory, ...], vocabulary: Vocabulary
    ) -> None:
        self.book: LegBook[SenderPort] = LegBook(leases, settings.max_waiting, self._changed, self._gone)
        self._settings = settings
        self._leases = leases
        self._memories = memories
        self._vocabulary = vocabulary
        self._powers = arithmetic.powers(arithmetic.P, settings.context_tokens)
        self._queue: dict[int, _Leg] = {}
        self._wake = asyncio.Event()

    @property
    def running(self) -> int:
        """Rooms that hold pages."""
        return self._leases.count

    def check(self, job: Job) -> None:
        """Raises TandemError(POOL_EXHAUSTED) for a prompt that can never have enough pages."""
        need = self._leases.pages_for(len(job.input_ids))
        if need > self._leases.pages.total:
            raise TandemError(
                ErrorReason.POOL_EXHAUSTED,
                f"the prompt needs {need} pages, the pool has {self._leases.pages.total}",
                field="input_ids",
            )

    async def run(self) -> None:
        """Computes for as long as the engine lives."""
        while True:
            leg, lease = await self._next()
            await self._compute(leg, lease)

    async def _next(self) -> tuple[_Leg, Lease]:
        while True:
            leg = next(iter(self._queue.values()), None)
            # A token at least is left to compute.
            lease = self._leases.take(len(leg.job.input_ids), leg.job.input_ids[:-1]) if leg is not None else None
            if leg is not None and lease is not None:
                del self._queue[leg.room]
                leg.lease, leg.stage = lease, Stage.MOVING
                return leg, lease
            self._wake.clear()
            await self._wake.wait()

    async def _compute(self, leg: _Leg, lease: Lease) -> None:
        tokens, settings = len(leg.job.input_ids), self._settings
        now = asyncio.get_running_loop().time()
        for sender in leg.handles:
            sender.began(now)
        seeds = arithmetic.prompt_seeds(leg.job.input_ids, self._powers)
        together = settings.layers_per_push or settings.layers
        cached = len(lease.prefix) * settings.page_size
        for start in range(cached, tokens, settings.chunk_tokens):
            end = min(start + settings.chunk_tokens, tokens)
            for first_layer in range(0, settings.layers, together):
                layers = range(first_layer, min(first_layer + together, settings.layers))
                share = len(layers) / settings.layers
                await asyncio.sleep((end - start) * settings.prefill_us_per_token * share / 1e6)
                if not leg.alive:
                    return  # its pages may belong to another room by now
                for memory in self._memories:
                    memory.write(lease.pages, start, seeds[start:end], layers)
                    if end == tokens:
                        memory.blank_tail(lease.pages, tokens, layers)
                last = end == tokens and layers.stop == settings.layers
                if last:
                    self._hand_over(leg, lease)
                # What was cached goes with the first chunk.
                self._push(leg, lease, _Part(0 if start == cached else start, end, layers, last))

    def _hand_over(self, leg: _Leg, lease: Lease) -> None:
        tokens = len(leg.job.input_ids)
        first = arithmetic.first_token(digest_over(self._memories, lease.pages), self._vocabulary.choices)
        leg.computed = leg.job.input_ids
        for memory in self._memories:
            memory.write_row(lease.row, Metadata(leg.room, first, tokens, len(lease.prefix) * self._settings.page_size))
        if leg.job.early_first_token and first != self._vocabulary.end:
            [text] = self._vocabulary.texts([first], skip_special=leg.job.sampling.skip_special_tokens)
            leg.sink(Delta(leg.room, (first,), text))

    def _push(self, leg: _Leg, lease: Lease, part: _Part) -> None:
        size = self._settings.page_size
        first_page = part.start // size
        end_page = lease.pages.size if part.end == len(leg.job.input_ids) else part.end // size
        for sender, memory in zip(leg.handles, self._memories, strict=True):
            pages = lease.pages[max(first_page, sender.decode_prefix_len // size) : end_page]
            if part.last or pages.size:
                sender.push(
                    pages,
                    last=part.last,
                    metadata_row=lease.row if part.last else None,
                    kv_buffers=memory.buffers_of(part.layers) if self._settings.layers_per_push else None,
                )

    def _changed(self, leg: _Leg) -> None:
        if leg.stage is Stage.CONNECTING and leg.handles.ready:
            leg.stage = Stage.QUEUED
            self._queue[leg.room] = leg
            self._wake.set()
        elif leg.stage is Stage.MOVING and leg.handles.landed:
            assert leg.lease is not None, "it moves"
            cached = len(leg.lease.prefix) * self._settings.page_size
            finish = Finish(FinishKind.HANDED_OVER, len(leg.job.input_ids), cached_tokens=cached)
            self.book.end(leg, Delta(leg.room, finish=finish))

    def _gone(self, leg: _Leg) -> None:
        self._queue.pop(leg.room, None)
        self._wake.set()
