"""KV pages that are kept for rooms, by Session, and who has the worker put aside, so that each gateway can be told what
is not its own."""

from __future__ import annotations

from collections.abc import Callable

from tandem.core.ids import RoomId
from tandem.engine.port import EngineFacts


class PageShares:
    """One per worker."""

    def __init__(self, facts: EngineFacts) -> None:
        self.page_size = facts.layout.page_size
        self.total = [0] * (1 + max((rank.rank.dp for rank in facts.ranks), default=0))
        """Pages that are kept, by data parallel rank."""
        self._shares: dict[PageShare, Callable[[], None]] = {}
        self._line: dict[PageShare, None] = {}
        """Those that want the worker put aside, in the order in which they asked. The first has it."""

    def join(self, others_changed: Callable[[], None]) -> PageShare:
        """A Session has begun. others_changed: called whenever `others` or `taken` of its share has changed."""
        share = PageShare(self)
        self._shares[share] = others_changed
        if any(self.total) or self._line:
            others_changed()
        return share

    def leave(self, share: PageShare) -> None:
        """It has ended, and so have its rooms."""
        del self._shares[share]
        self.put_aside(share, wanted=False)

    @property
    def first(self) -> PageShare | None:
        """For whom the worker is put aside."""
        return next(iter(self._line), None)

    def put_aside(self, share: PageShare, *, wanted: bool) -> None:
        """A Session gets in line for the worker, at its end, or leaves it."""
        before = self.first
        if wanted:
            self._line.setdefault(share)
        else:
            self._line.pop(share, None)
        if self.first is not before:
            for others_changed in self._shares.values():
                others_changed()

    def changed(self, by: PageShare) -> None:
        """A Session has more or less than before."""
        for share, others_changed in self._shares.items():
            if share is not by:
                others_changed()


class PageShare:
    """What one Session has."""

    def __init__(self, whole: PageShares) -> None:
        self._whole = whole
        self._own = [0] * len(whole.total)
        self._rooms: dict[RoomId, tuple[int, int]] = {}
        """Data parallel rank and pages of each."""

    @property
    def others(self) -> list[int]:
        """Pages of all other Sessions, by data parallel rank."""
        return [total - own for total, own in zip(self._whole.total, self._own, strict=True)]

    @property
    def taken(self) -> bool:
        """Whether the worker is put aside for another Session."""
        return self._whole.first not in (None, self)

    def put_aside(self, *, wanted: bool) -> None:
        """Its gateway wants the worker put aside for itself, or does not any more."""
        self._whole.put_aside(self, wanted=wanted)

    def keep(self, room: RoomId, rank: int, tokens: int) -> None:
        """A room came. tokens: of its prompt and those that it may generate. A rank that is not there keeps nothing."""
        if rank < len(self._own) and room not in self._rooms:
            pages = -(-tokens // self._whole.page_size)
            self._rooms[room] = rank, pages
            self._add(rank, pages)

    def free(self, room: RoomId) -> None:
        """It has ended; nothing happens if nothing was kept for it."""
        if (kept := self._rooms.pop(room, None)) is not None:
            rank, pages = kept
            self._add(rank, -pages)

    def leave(self) -> None:
        """The Session has ended, and so have its rooms."""
        for room in list(self._rooms):
            self.free(room)
        self._whole.leave(self)

    def _add(self, rank: int, pages: int) -> None:
        self._own[rank] += pages
        self._whole.total[rank] += pages
        self._whole.changed(self)
