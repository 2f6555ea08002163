"""Doubles for the tests of the SGLang adapter."""

from __future__ import annotations

import pytest

from tandem.core.ids import RoomId
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle


class Rooms:
    """Takes what the handles ask of the agent, and keeps it."""

    def __init__(self) -> None:
        self.pushed: list[tuple] = []
        self.reserved: list[tuple] = []
        self.aborted: list[tuple] = []
        self.forgotten: list[RoomId] = []

    def push(self, *args):
        self.pushed.append(args)

    def reserve(self, *args):
        self.reserved.append(args)

    def abort_room(self, *args):
        self.aborted.append(args)
        return True

    def forget(self, room):
        self.forgotten.append(room)


class Rank:
    """Stands for ThreadedRank: its handles are moved by the test."""

    def __init__(self) -> None:
        self.rooms = Rooms()

    def sender(self, room):
        return SenderHandle(RoomId(room), self.rooms, lambda call, *args: call(*args))

    def receiver(self, room):
        return ReceiverHandle(RoomId(room), self.rooms, lambda call, *args: call(*args))


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch):
    """A TandemKVManager over a Rank double."""
    from tandem.engine.sglang import backend

    made = object.__new__(backend.TandemKVManager)
    made.rank, made.receivers, made.wake = Rank(), {}, backend.Wake()
    made.device_pools = made.forward_stream = None
    return made
