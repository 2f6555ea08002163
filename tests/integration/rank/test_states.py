"""State components on their way between two ranks: pools of other sizes, other pages of each, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.room.events import Phase
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tests.support.rank.pair import Pair, pair, reached

pytestmark = pytest.mark.timeout(60)
PAGES, INTO_PAGES = np.array([3, 4, 5]), np.array([40, 2, 41])
WINDOW, INTO_WINDOW = np.array([6, 7, 1]), np.array([10, 0, 11])
SLOT, INTO_SLOT = np.array([5]), np.array([1])
States = Sequence[np.ndarray | None]


def fill(ranks: Pair) -> None:
    """Random bytes, other ones on each side."""
    random = np.random.default_rng(11)
    for array in (*ranks.prefill.memory.arrays, *ranks.decode.memory.arrays):
        array[:] = random.integers(0, 256, array.shape, dtype=np.uint8)


async def hand_over(ranks: Pair, granted: States, pushed: States) -> tuple[SenderHandle, ReceiverHandle]:
    """One room in two chunks, both ended; the states go with the last."""
    await ranks.open(21)
    sender, receiver = ranks.prefill.agent.sender(21), ranks.decode.agent.receiver(21)
    await reached(receiver, Phase.WAITING)
    receiver.offer(INTO_PAGES, granted, metadata_row=3)
    await reached(sender, Phase.WAITING)
    sender.push(PAGES[:2], last=False)
    sender.push(PAGES[2:], pushed, last=True, metadata_row=1)
    await reached(receiver, Phase.SUCCESS, Phase.FAILED)
    await reached(sender, Phase.SUCCESS, Phase.FAILED)
    return sender, receiver


def expected(ranks: Pair, window: bool = True) -> list[np.ndarray]:
    """What decode's memory holds after a good room: prefill's entries where they were granted, its own elsewhere."""
    source, target = ranks.prefill.memory, [array.copy() for array in ranks.decode.memory.arrays]
    moves = [
        (INTO_PAGES, PAGES),
        (INTO_PAGES, PAGES),
        ([3], [1]),
        (INTO_WINDOW, WINDOW) if window else ([], []),
        (INTO_SLOT, SLOT),
        (INTO_SLOT, SLOT),
    ]
    for array, ours, (into, entries) in zip(target, source.arrays, moves, strict=True):
        array[np.array(into, int)] = ours[np.array(entries, int)]
    return target


@pytest.mark.parametrize("provider", ["tcp", "cma"])
@pytest.mark.parametrize("window", [True, False])
async def test_both_components_arrive_and_nothing_else_changes(provider: str, window: bool) -> None:
    async with pair(provider) as ranks:
        fill(ranks)
        memory = expected(ranks, window)
        granted, pushed = ([INTO_WINDOW, INTO_SLOT], [WINDOW, SLOT]) if window else ([None, INTO_SLOT], [None, SLOT])
        sender, receiver = await hand_over(ranks, granted, pushed)
        assert (sender.phase, receiver.phase) == (Phase.SUCCESS, Phase.SUCCESS), receiver.why
        for found, wanted in zip(ranks.decode.memory.arrays, memory, strict=True):
            np.testing.assert_array_equal(found, wanted)
        counters = ranks.decode.agent.counters
        assert counters.kv_bytes == 3 * 128 + (3 * 24 if window else 0) + 48
        assert counters.granted_states == {"state:0:swa": 0, "state:1:mamba": 0}


@pytest.mark.parametrize(
    "pushed",
    [
        pytest.param([WINDOW[1:], SLOT], id="a page short"),
        pytest.param([np.array([2, 6, 7, 1]), SLOT], id="a page over"),
        pytest.param([None, SLOT], id="no window"),
        pytest.param([WINDOW, None], id="no slot"),
        pytest.param([], id="nothing"),
        pytest.param([SLOT, WINDOW], id="one for the other"),
    ],
)
async def test_states_that_are_not_as_granted_fail_the_room(pushed: States) -> None:
    async with pair() as ranks:
        fill(ranks)
        state = [array.copy() for array in ranks.decode.memory.arrays[3:]]
        sender, receiver = await hand_over(ranks, [INTO_WINDOW, INTO_SLOT], pushed)
        assert (sender.phase, receiver.phase) == (Phase.FAILED, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.PROTOCOL_VIOLATION
        for found, before in zip(ranks.decode.memory.arrays[3:], state, strict=True):
            np.testing.assert_array_equal(found, before)
        assert ranks.decode.agent.counters.granted_states == {"state:0:swa": 0, "state:1:mamba": 0}


async def test_granted_states_are_counted_until_the_room_ends() -> None:
    async with pair() as ranks:
        await ranks.open(22)
        receiver = ranks.decode.agent.receiver(22)
        await reached(receiver, Phase.WAITING)
        receiver.offer(INTO_PAGES, [INTO_WINDOW, INTO_SLOT], metadata_row=3)
        assert ranks.decode.agent.counters.granted_states == {"state:0:swa": 3, "state:1:mamba": 1}
        receiver.abort(ErrorReason.CANCELLED, "the test leaves")
        await reached(receiver, Phase.FAILED)
        assert ranks.decode.agent.counters.granted_states == {"state:0:swa": 0, "state:1:mamba": 0}
