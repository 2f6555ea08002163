"""What a gateway knows of the prefix caches of a role's workers: its own index, told by their own logs."""

from __future__ import annotations

from functools import partial
from typing import Final

from tandem.cli.sim_serve.cache import page_runs
from tandem.cli.sim_serve.jobs import Pieces
from tandem.core.ids import WorkerLife
from tandem.core.kv_index import KvIndex, KvMatch
from tandem.core.kv_log import KvFollower, KvLog

MAX_HELD_PAGES: Final = 1 << 20
"""Over all workers: the gateway's default."""
MAX_NEWS: Final = 1 << 16
"""Pages of one change."""
_NO_LIMIT: Final = 1 << 60
"""Of a log: its cache has one."""


class HeldPages:
    """News are taken when somebody asks: nothing happens between a worker's saying so and the gateway's knowing."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._index = KvIndex(MAX_HELD_PAGES)
        self._followers: dict[WorkerLife, KvFollower] = {}
        self._spoke: dict[WorkerLife, None] = {}
        """Those with news, in the order in which they had them."""

    def follow(self, life: WorkerLife) -> KvLog:
        """A worker joins; its cache is to tell this log what it keeps."""
        log = KvLog(_NO_LIMIT)
        self._followers[life] = log.follow(partial(self._spoke.__setitem__, life, None))
        return log

    def forget(self, life: WorkerLife) -> None:
        """It gets nothing any more."""
        self._followers.pop(life).close()
        self._spoke.pop(life, None)
        self._index.forget(life)

    def match(self, pieces: Pieces) -> KvMatch:
        """Who holds how much of a prompt; to be used before anything else happens."""
        for life in self._spoke:
            while (change := self._followers[life].take(MAX_NEWS)) is not None:
                self._index.apply(life, change)
        self._spoke.clear()
        return self._index.match(page_runs(pieces, self._page_tokens))
