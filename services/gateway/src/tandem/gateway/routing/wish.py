"""What one attempt wants of its workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from tandem.core.affinity import AffinityKey, key_of_prefix
from tandem.core.ids import WorkerLife
from tandem.core.page_ledger import Seat
from tandem.core.prompt_pages import PageMemo, PromptPages


@dataclass(frozen=True)
class Wish:
    """What a policy may ask of the prompt is worked out once, and only if one does."""

    model: str
    avoid: Collection[WorkerLife]
    """Others, where there are any."""
    session: AffinityKey
    prefix_tokens: int
    """How many tokens of a prompt are its beginning."""
    ids: Sequence[int]
    memo: PageMemo
    seat: Seat = field(default_factory=partial(Seat, 0))
    """Its room where it decodes: workers that have none, besides the one where it is, are left out."""

    @cached_property
    def prefix(self) -> AffinityKey:
        """Of how the prompt begins."""
        return key_of_prefix(self.ids, self.prefix_tokens)

    def pages(self, page_size: int) -> PromptPages:
        """The prompt's pages; the same object each time."""
        if page_size not in self._pages:
            self._pages[page_size] = PromptPages(self.ids, page_size, self.memo)
        return self._pages[page_size]

    @cached_property
    def _pages(self) -> dict[int, PromptPages]:
        return {}
