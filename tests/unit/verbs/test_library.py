"""What pyverbs keeps in different places, and what no release of it shows."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tandem.rdma.verbs.library import Library, constants_of


class ibv_wc_status(enum.IntEnum):  # noqa: N801 - pyverbs' own name
    """As Cython 3 makes it."""

    IBV_WC_SUCCESS = 0
    IBV_WC_RETRY_EXC_ERR = 12


class ibv_send_flags(enum.IntFlag):  # noqa: N801 - pyverbs' own name
    """As Cython 3 makes it, with two names of one value."""

    IBV_SEND_FENCE = 1
    IBV_SEND_SIGNALED = 2
    IBV_SEND_ALSO_SIGNALED = 2


def test_constants_are_found_at_the_top_and_inside_classes() -> None:
    module = ModuleType("enums")
    vars(module).update(ibv_wc_status=ibv_wc_status, ibv_send_flags=ibv_send_flags, IBV_QP_STATE=1, other=object)
    found = constants_of(module)
    assert found == {
        "IBV_WC_SUCCESS": 0,
        "IBV_WC_RETRY_EXC_ERR": 12,
        "IBV_SEND_FENCE": 1,
        "IBV_SEND_SIGNALED": 2,
        "IBV_SEND_ALSO_SIGNALED": 2,
        "IBV_QP_STATE": 1,
    }
    assert {type(value) for value in found.values()} == {int}


class StubError(Exception):
    """Stands for PyverbsError."""


class StubContext:
    """Opens so many descriptors of events, under the kernel's name for them, and has some events."""

    def __init__(self, folder: Path, descriptors: int) -> None:
        path = folder / "infinibandevent"
        path.touch()
        self.fds = [os.open(path, os.O_RDWR) for _ in range(descriptors)]
        self.events: list[int] = []
        self.acknowledged = 0

    def get_async_event(self) -> SimpleNamespace:
        """The next event."""
        if not self.events:
            raise StubError
        return SimpleNamespace(event_type=self.events.pop(0), ack=self._ack)

    def _ack(self) -> None:
        self.acknowledged += 1


@pytest.fixture
def verbs() -> Library:
    """A release of pyverbs with two events and an error."""
    made = object.__new__(Library)
    made.PyverbsError = StubError
    vars(made).update(IBV_PORT_ACTIVE=9, IBV_EVENT_PORT_ACTIVE=9, IBV_EVENT_PORT_ERR=10)
    return made


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[list[StubContext]]:
    """With no, one and two descriptors, none of them open before."""
    made: list[StubContext] = []
    yield made
    for context in made:
        for fd in context.fds:
            os.close(fd)


@pytest.mark.parametrize("descriptors", [0, 1, 2])
def test_a_devices_events_are_read_from_the_one_descriptor_that_is_new(
    verbs: Library, contexts: list[StubContext], tmp_path: Path, descriptors: int
) -> None:
    contexts.append(StubContext(tmp_path, 1))  # of another device

    def opened(name: str) -> StubContext:
        contexts.append(StubContext(tmp_path, descriptors))
        return contexts[-1]

    verbs.Context = opened
    context, fd = verbs.open_device("dbl0")
    assert context is contexts[-1]
    assert fd == (context.fds[0] if descriptors == 1 else None)
    assert [os.get_blocking(each) for each in context.fds] == ([False] if descriptors == 1 else [True] * descriptors)


def test_an_event_is_acknowledged_when_it_is_taken(verbs: Library, contexts: list[StubContext], tmp_path: Path) -> None:
    context = StubContext(tmp_path, 0)
    context.events = [10, 9, 77]
    assert [verbs.next_event(context) for _ in range(4)] == ["PORT_ERR", "PORT_ACTIVE", "77", None]
    assert context.acknowledged == 3
