"""Workers on the virtual clock: prefill, decode, and unified ones that do both."""

from __future__ import annotations

from functools import partial

from tandem.cli.sim_serve.cache import PrefixCache
from tandem.cli.sim_serve.crew import Rooms
from tandem.cli.sim_serve.decoder import Decoder
from tandem.cli.sim_serve.jobs import Job
from tandem.cli.sim_serve.pages import Room
from tandem.cli.sim_serve.prompts import Chunk, PromptQueue
from tandem.cli.sim_serve.setting import Setting
from tandem.core.ids import Role
from tandem.core.planner.loads import WorkerSight


class PrefillWorker:
    """Computes prompts and pushes each chunk of KV as soon as it is computed."""

    def __init__(self, setting: Setting, rooms: Rooms) -> None:
        self.rooms = rooms
        """A request leaves when its KV has landed."""
        self.busy_s = 0.0
        self._set = setting
        self._queue = PromptQueue(setting.costs, setting.shape)
        self._cache = PrefixCache(setting.shape.cache_tokens, setting.shape.page_tokens, rooms.held)
        self._sends_until_s = 0.0
        self._computing = False

    def sight(self) -> WorkerSight:
        """What it would say of itself."""
        return WorkerSight(self.rooms.life.worker_id, Role.PREFILL, self._set.shape.max_running, self.rooms.count)

    def submit(self, job: Job) -> None:
        """A prompt whose decode worker has reserved its pages."""
        if job.room is not None:
            job.room.granted(job.prompt_tokens * self._set.shape.kv_bytes_per_token, self._set.agenda.now)
        job.cached_tokens = self._cache.held_of(job)
        self._queue.add(job)
        if not self._computing:
            self._compute()

    def _compute(self) -> None:
        seconds, chunks = self._queue.next_batch()
        self._computing = bool(chunks)
        if chunks:
            self.busy_s += seconds
            agenda = self._set.agenda
            agenda.at(agenda.now + seconds, partial(self._computed, chunks))

    def _computed(self, chunks: list[Chunk]) -> None:
        now = self._set.agenda.now
        for chunk in chunks:
            job = chunk.job
            if chunk.last:
                job.first_token_s = now
                self._cache.keep(job.ask.pieces)
            # The prefix that prefill had is pushed with what it has computed.
            tokens = chunk.tokens + (job.cached_tokens if chunk.last else 0)
            self._push(job, tokens, last=chunk.last)
        self._compute()

    def _push(self, job: Job, tokens: int, *, last: bool) -> None:
        agenda, shape, target = self._set.agenda, self._set.shape, job.target
        assert target is not None, "prefill has somewhere to push to"
        size = tokens * shape.kv_bytes_per_token
        seconds = self._set.link.chunk_s(size, -(-tokens // shape.page_tokens))
        landed = max(agenda.now, self._sends_until_s, target.receives_until_s) + seconds
        self._sends_until_s = target.receives_until_s = landed
        if job.room is not None:
            agenda.at(landed, partial(job.room.computed(last=last, now=agenda.now), size, landed))
        if last:
            agenda.at(landed, partial(self._landed, job))

    def _landed(self, job: Job) -> None:
        self.rooms.leave()
        if job.underway is not None:
            job.underway.arrived()
        assert job.target is not None
        job.target.land(job)


class DecodeWorker:
    """Decodes what prefill workers push."""

    def __init__(self, setting: Setting, rooms: Rooms) -> None:
        self.rooms = rooms
        """A request leaves when it is answered."""
        self.receives_until_s = 0.0
        self.room = Room(setting.shape.kv_tokens, setting.shape.page_tokens)
        self.decoder = Decoder(setting, self._ended)
        self._set = setting
        self._landed_tokens = 0
        """Of the pages of requests whose KV is there."""

    def sight(self) -> WorkerSight:
        """What it would say of itself."""
        running, page = len(self.decoder), self._set.shape.page_tokens
        return WorkerSight(
            self.rooms.life.worker_id,
            Role.DECODE,
            self._set.shape.max_running,
            running,
            self.rooms.count - running,
            self.room.total // page,
            self._landed_tokens // page,
        )

    def land(self, job: Job) -> None:
        """A prompt's KV is there."""
        self._landed_tokens += self.room.need(job)
        self.decoder.join(job)

    def _ended(self, job: Job) -> None:
        self._landed_tokens -= self.room.need(job)
        self.rooms.leave()
        self.room.release(job)
        self._set.done(job)


class UnifiedWorker:
    """Computes prompts itself, and nothing decodes meanwhile: as an engine that is not disaggregated."""

    def __init__(self, setting: Setting, rooms: Rooms) -> None:
        self.rooms = rooms
        """A request leaves when it is answered."""
        self.prefill_busy_s = 0.0
        self.room = Room(setting.shape.kv_tokens, setting.shape.page_tokens)
        self.decoder = Decoder(setting, self._ended, self._prefill_first)
        self._set = setting
        self._queue = PromptQueue(setting.costs, setting.shape)
        self._cache = PrefixCache(setting.shape.cache_tokens, setting.shape.page_tokens, rooms.held)
        self._computing = False

    def sight(self) -> WorkerSight:
        """What it would say of itself."""
        running, page = len(self.decoder), self._set.shape.page_tokens
        return WorkerSight(
            self.rooms.life.worker_id,
            Role.UNIFIED,
            self._set.shape.max_running,
            running,
            self.rooms.count - running,
            self.room.total // page,
            (self.room.total - self.room.free) // page,
        )

    def submit(self, job: Job) -> None:
        """A prompt that has its pages."""
        job.cached_tokens = self._cache.held_of(job)
        self._queue.add(job)
        if not self._computing:
            self.decoder.interrupt()

    def _prefill_first(self) -> bool:
        if self._computing:
            return True
        seconds, chunks = (0.0, []) if self.decoder.full else self._queue.next_batch()
        if not chunks:
            return False
        self._computing = True
        self.prefill_busy_s += seconds
        if len(self.decoder):
            self.decoder.stall_s += seconds
        agenda = self._set.agenda
        agenda.at(agenda.now + seconds, partial(self._computed, chunks))
        return True

    def _computed(self, chunks: list[Chunk]) -> None:
        for job in [chunk.job for chunk in chunks if chunk.last]:
            job.first_token_s = self._set.agenda.now
            self._cache.keep(job.ask.pieces)
            self.decoder.join(job)
        self._computing = False
        self.decoder.go_on()

    def _ended(self, job: Job) -> None:
        self.rooms.leave()
        self.room.release(job)
        self._set.done(job)
