"""A prefix cache, in pieces of prompts, and the news of its pages. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from tandem.cli.sim_serve.jobs import Job, Pieces
from tandem.cli.sim_serve.pages import whole_pages
from tandem.core.kv_index import MAX_PAGES_MATCHED, PageHash
from tandem.core.kv_log import KvLog


@dataclass(frozen=True, slots=True)
class Stretch(Sequence[PageHash]):
    """A piece in its place in a prompt, as the pages that end in it. They are made when somebody looks at them."""

    chain: int
    """Stands for the key of the piece and for all before it."""
    before: int
    """Tokens before it."""
    tokens: int
    """Of it; a piece of the same chain that is shorter has the first ones of a longer one."""
    page_tokens: int

    def __len__(self) -> int:
        return (self.before + self.tokens) // self.page_tokens - self.before // self.page_tokens

    @overload
    def __getitem__(self, place: int) -> PageHash: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[PageHash]: ...
    def __getitem__(self, place: int | slice) -> PageHash | Sequence[PageHash]:
        if isinstance(place, slice):
            return [PageHash(hash((self.chain, end))) for end in self._ends[place]]
        return PageHash(hash((self.chain, self._ends[place])))

    def __iter__(self) -> Iterator[PageHash]:
        for end in self._ends:
            yield PageHash(hash((self.chain, end)))

    @property
    def _ends(self) -> range:
        """Tokens of the prompt up to the end of each page."""
        size = self.page_tokens
        return range((self.before // size + 1) * size, self.before + self.tokens + 1, size)


def stretches(pieces: Pieces, page_tokens: int = 1) -> list[Stretch]:
    """Of a prompt, in order."""
    whole, before, found = 0, 0, []
    for key, tokens in pieces:
        found.append(Stretch(hash((whole, key)), before, tokens, page_tokens))
        whole, before = hash((whole, key, tokens)), before + tokens
    return found


def page_runs(pieces: Pieces, page_tokens: int) -> Iterator[Sequence[PageHash]]:
    """The pages of a prompt in order, as a KvIndex looks them up: as many as it looks at."""
    left = MAX_PAGES_MATCHED
    for stretch in stretches(pieces, page_tokens):
        run = stretch if len(stretch) <= left else stretch[:left]
        left -= len(run)
        if run:
            yield run


class PrefixCache:
    """Keeps the beginnings of prompts; what was used the longest ago goes first, and the end of a prompt before its
    beginning."""

    def __init__(self, tokens: int, page_tokens: int = 1, log: KvLog | None = None) -> None:
        """tokens: most that are kept. page_tokens: only whole pages are found again. log: hears of every page."""
        self._most = tokens
        self._page_tokens = page_tokens
        self._log = log
        self._kept: OrderedDict[int, Stretch] = OrderedDict()
        """By chain."""
        self._tokens = 0

    def held_of(self, job: Job) -> int:
        """Tokens of a prompt that need not be computed: whole pages, and not the last token."""
        return whole_pages(min(self.held(job.ask.pieces), job.prompt_tokens - 1), self._page_tokens)

    def held(self, pieces: Pieces) -> int:
        """Tokens at the beginning of a prompt that are there."""
        found = 0
        if self._kept:
            for stretch in stretches(pieces):
                kept = self._kept.get(stretch.chain)
                if kept is None:
                    break
                found += min(kept.tokens, stretch.tokens)
                if kept.tokens < stretch.tokens:
                    break
        return found

    def keep(self, pieces: Pieces) -> None:
        """A prompt is computed."""
        if not self._most:
            return
        for stretch in reversed(stretches(pieces, self._page_tokens)):
            kept = self._kept.get(stretch.chain)
            if kept is None or kept.tokens < stretch.tokens:
                self._tokens += stretch.tokens - (kept.tokens if kept else 0)
                self._kept[stretch.chain] = stretch
                if self._log is not None:
                    self._log.store(stretch)
            self._kept.move_to_end(stretch.chain)
        while self._tokens > self._most:
            _, gone = self._kept.popitem(last=False)
            self._tokens -= gone.tokens
            if self._log is not None:
                self._log.remove(gone)
