"""The pages of one prompt by their hashes, worked out as far as somebody asks, and not again for what prompts share.

Who looks a prompt up in a KvIndex stops at the first page that nobody holds, so most of a new prompt is never hashed.
What is held was mostly hashed for the prompt before, such as the last turn of a conversation: PageMemo remembers it,
and comparing tokens costs a tenth of hashing them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, cast

from tandem.core.kv_index import MAX_PAGES_MATCHED, PageHash, hash_of_digest

CHUNK_TOKENS: Final = 256
"""Tokens that are remembered together, in whole pages."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """A chunk of a prompt that was hashed."""

    pages: Sequence[PageHash]
    digest: bytes
    """Of all tokens up to its end."""


class PageMemo:
    """Chunks that were hashed before, by the digest of all before them and their tokens."""

    def __init__(self, max_chunks: int) -> None:
        """max_chunks: the one that was used the longest ago is forgotten. Each takes about 6 bytes a token where pages
        have 16, and 12 where they have one."""
        self._max_chunks = max_chunks
        self._chunks: OrderedDict[tuple[bytes, bytes], Hashed] = OrderedDict()

    def get(self, key: tuple[bytes, bytes]) -> Hashed | None:
        """None if it is not remembered."""
        found = self._chunks.get(key)
        if found is not None:
            self._chunks.move_to_end(key)
        return found

    def put(self, key: tuple[bytes, bytes], chunk: Hashed) -> None:
        """Remembers one."""
        self._chunks[key] = chunk
        if len(self._chunks) > self._max_chunks:
            self._chunks.popitem(last=False)


class PromptPages:
    """The full pages of a prompt, in order, at most MAX_PAGES_MATCHED."""

    def __init__(self, ids: Sequence[int], page_size: int, memo: PageMemo) -> None:
        """ids: tokens, 0..2^32-1."""
        self._ids = ids
        self._page_size = page_size
        self._memo = memo
        self._count = min(len(ids) // page_size, MAX_PAGES_MATCHED)
        self._chunk_pages = max(1, CHUNK_TOKENS // page_size)
        self._found: list[PageHash] = []
        self._digest = b""
        """Of the pages that were found."""
        self._key = (b"", b"")
        """Of the chunk that is being hashed."""

    def runs(self) -> Iterator[Sequence[PageHash]]:
        """As many at a time as are known together: a chunk that was remembered, else one. From the first again each
        time."""
        done = 0
        while done < self._count:
            if done == len(self._found):
                self._find_more()
            run = self._found[done : done + self._chunk_pages - done % self._chunk_pages]
            done += len(run)
            yield run

    def _find_more(self) -> None:
        if len(self._found) % self._chunk_pages == 0 and (chunk := self._begin()) is not None:
            self._digest = chunk.digest
            self._found += chunk.pages
        else:
            self._hash_page()

    def _begin(self) -> Hashed | None:
        """Begins a chunk; returns it if it is known."""
        start = len(self._found) * self._page_size
        end = min(start + self._chunk_pages * self._page_size, self._count * self._page_size)
        self._key = (self._digest, array("I", self._ids[start:end]).tobytes())
        return self._memo.get(self._key)

    def _hash_page(self) -> None:
        tokens, size = self._key[1], self._page_size * array("I").itemsize
        start = len(self._found) % self._chunk_pages * size
        self._digest = sha256(self._digest + tokens[start : start + size]).digest()
        self._found.append(hash_of_digest(self._digest))
        if start + size == len(tokens):
            pages = self._found[-(len(tokens) // size) :]
            # In an array they take 8 bytes each, rather than 40.
            self._memo.put(self._key, Hashed(cast(Sequence[PageHash], array("Q", pages)), self._digest))
