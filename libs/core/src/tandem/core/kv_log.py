"""What one prefix cache holds, and the news of it for everyone who follows.

Each follower has what it was not told yet, page by page: a page that comes and goes meanwhile is told of once. So a
follower that is slow holds nobody up, and what waits for it has a bound; past that, it starts over with a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from tandem.core.kv_index import KvChange, PageHash


class KvFollower:
    """What one follower has not been told. Made by KvLog.follow."""

    def __init__(self, log: KvLog, on_news: Callable[[], None]) -> None:
        self._log = log
        self._on_news = on_news
        self._pending: dict[PageHash, bool] = {}
        """Whether a page is held now, of those to tell of."""
        self._cleared = False
        self._sequence = 0
        self.start_over()

    def start_over(self) -> None:
        """Tells everything from the beginning."""
        self._pending = dict.fromkeys(self._log.pages, True)
        self._cleared = True
        self._on_news()

    def note(self, pages: Iterable[PageHash], held: bool) -> None:
        """Pages have come or gone."""
        self._pending.update(dict.fromkeys(pages, held))
        if len(self._pending) > 2 * self._log.max_pages:
            self.start_over()
        elif self._pending:
            self._on_news()

    def take(self, limit: int) -> KvChange | None:
        """The next change, of at most `limit` pages; None if everything was told."""
        if not self._pending and not self._cleared:
            return None
        told = list(islice(self._pending.items(), limit))
        for page, _ in told:
            del self._pending[page]
        change = KvChange(
            self._sequence,
            removed=tuple(page for page, held in told if not held),
            stored=tuple(page for page, held in told if held),
            cleared=self._cleared,
        )
        self._cleared = False
        self._sequence += 1
        return change

    def close(self) -> None:
        """Ends it. Idempotent."""
        self._log.leave(self)


class KvLog:
    """The pages that a prefix cache holds now."""

    def __init__(self, max_pages: int) -> None:
        """max_pages: most that are noted; of what comes beyond, nothing is."""
        self.max_pages = max_pages
        self.pages: dict[PageHash, None] = {}
        """In the order in which they came."""
        self._followers: set[KvFollower] = set()

    def follow(self, on_news: Callable[[], None]) -> KvFollower:
        """Follows from now on, beginning with what is held. on_news: called when there is something to take, at once
        too; must not block."""
        follower = KvFollower(self, on_news)
        self._followers.add(follower)
        return follower

    def leave(self, follower: KvFollower) -> None:
        """See KvFollower.close."""
        self._followers.discard(follower)

    def store(self, pages: Iterable[PageHash]) -> None:
        """Pages came."""
        new = list(dict.fromkeys(page for page in pages if page not in self.pages))
        new = new[: max(0, self.max_pages - len(self.pages))]
        self.pages.update(dict.fromkeys(new))
        self._tell(new, held=True)

    def remove(self, pages: Iterable[PageHash]) -> None:
        """Pages went."""
        gone = [page for page in dict.fromkeys(pages) if page in self.pages]
        for page in gone:
            del self.pages[page]
        self._tell(gone, held=False)

    def clear(self) -> None:
        """All pages went."""
        self.pages.clear()
        for follower in self._followers:
            follower.start_over()

    def apply(self, change: KvChange) -> None:
        """Holds what another log does, given its changes in order."""
        if change.cleared:
            self.clear()
        self.remove(change.removed)
        self.store(change.stored)

    def _tell(self, pages: list[PageHash], *, held: bool) -> None:
        if pages:
            for follower in self._followers:
                follower.note(pages, held)
