"""What one attempt wants of its workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tandem.core.affinity import AffinityKey, key_of_prefix
from tandem.core.ids import WorkerLife
from tandem.core.kv_index import PageHash, page_hashes


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
    _pages: dict[int, list[PageHash]] = field(default_factory=dict)

    @cached_property
    def prefix(self) -> AffinityKey:
        """Of how the prompt begins."""
        return key_of_prefix(self.ids, self.prefix_tokens)

    def pages(self, page_size: int) -> list[PageHash]:
        """The prompt's pages."""
        if page_size not in self._pages:
            self._pages[page_size] = page_hashes(self.ids, page_size)
        return self._pages[page_size]
