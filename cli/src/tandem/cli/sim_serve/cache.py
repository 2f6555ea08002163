"""A prefix cache, in pieces of prompts. Pure."""

from __future__ import annotations

from collections import OrderedDict

from tandem.cli.sim_serve.jobs import Job, Pieces
from tandem.cli.sim_serve.pages import whole_pages


class PrefixCache:
    """Keeps the beginnings of prompts; what was used the longest ago goes first, and the end of a prompt before its
    beginning."""

    def __init__(self, tokens: int, page_tokens: int = 1) -> None:
        """tokens: most that are kept. page_tokens: only whole pages are found again."""
        self._most = tokens
        self._page_tokens = page_tokens
        self._kept: OrderedDict[int, int] = OrderedDict()
        """Tokens of a piece, by a hash of it and all before it."""
        self._tokens = 0

    def held_of(self, job: Job) -> int:
        """Tokens of a prompt that need not be computed: whole pages, and not the last token."""
        return whole_pages(min(self.held(job.ask.pieces), job.prompt_tokens - 1), self._page_tokens)

    def held(self, pieces: Pieces) -> int:
        """Tokens at the beginning of a prompt that are there."""
        found = 0
        if self._kept:
            for chain, tokens in _chained(pieces):
                if self._kept.get(chain) != tokens:
                    break
                found += tokens
        return found

    def keep(self, pieces: Pieces) -> None:
        """A prompt is computed."""
        if not self._most:
            return
        for chain, tokens in reversed(_chained(pieces)):
            self._tokens += tokens - self._kept.get(chain, 0)
            self._kept[chain] = tokens
            self._kept.move_to_end(chain)
        while self._tokens > self._most:
            self._tokens -= self._kept.popitem(last=False)[1]


def _chained(pieces: Pieces) -> list[tuple[int, int]]:
    chain, found = 0, []
    for key, tokens in pieces:
        chain = hash((chain, key))
        found.append((chain, tokens))
    return found
