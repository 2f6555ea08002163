"""Who gets snapshots, when they are made, and what becomes of viewers that are too many, too slow or gone."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.dashboard.feed import Feed
from tandem.gateway.web.dashboard_endpoints import Dashboard, DashboardEvents
from tandem.gateway.web.line import Line
from tests.support.gateway.clock import HandClock


class Maker:
    """Counts the snapshots that it makes."""

    def __init__(self) -> None:
        self.made = 0

    async def __call__(self) -> bytes:
        self.made += 1
        return str(self.made).encode()


async def test_nothing_is_made_while_nobody_looks_and_one_for_all_who_do() -> None:
    maker, clock = Maker(), HandClock()
    feed = Feed(maker, clock, max_viewers=2, interval_s=0.001)
    assert maker.made == 0
    viewers = [feed.snapshots(), feed.snapshots()]
    assert [await anext(one) for one in viewers] == [b"1", b"1"]
    clock.now_s += 1
    assert [await anext(one) for one in viewers] == [b"2", b"2"]
    assert maker.made == 2


async def test_a_slow_viewer_misses_snapshots_and_none_wait_for_it() -> None:
    maker, clock = Maker(), HandClock()
    feed = Feed(maker, clock, max_viewers=2, interval_s=0.001)
    slow, quick = feed.snapshots(), feed.snapshots()
    assert await anext(slow) == b"1"
    for _ in range(5):
        clock.now_s += 1
        newest = await anext(quick)
    assert await anext(slow) == newest


async def test_who_asks_while_a_snapshot_is_made_gets_the_same() -> None:
    made, may = 0, asyncio.Event()

    async def make() -> bytes:
        nonlocal made
        made += 1
        await may.wait()
        return str(made).encode()

    feed = Feed(make, HandClock(), max_viewers=3)
    viewers = [asyncio.ensure_future(anext(feed.snapshots())) for _ in range(3)]
    await asyncio.sleep(0)
    viewers.pop(0).cancel()
    may.set()
    assert await asyncio.gather(*viewers) == [b"2", b"2"], "the first viewer has gone, and what it had asked for"


async def test_close_ends_viewers_at_once() -> None:
    feed = Feed(Maker(), HandClock(), max_viewers=1, interval_s=3600)
    viewer = feed.snapshots()
    await anext(viewer)
    waiting = asyncio.ensure_future(anext(viewer))
    await asyncio.sleep(0)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, 10)


def test_places_are_bounded_and_given_back() -> None:
    feed = Feed(Maker(), HandClock(), max_viewers=1)
    with feed.place():
        with pytest.raises(TandemError) as refused, feed.place():
            pass
        assert refused.value.reason is ErrorReason.OVERLOADED
    with feed.place():
        assert feed.viewers == 1


async def stay() -> dict[str, Any]:
    """A client that does not go."""
    await asyncio.Event().wait()
    return {}


async def test_a_viewer_that_takes_nothing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed(Maker(), HandClock(), max_viewers=1)

    async def clogged(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(DashboardEvents(Dashboard(feed, on=True), slow_s=0.01)({}, stay, clogged), 10)  # type: ignore[arg-type]
    assert "too slowly" in caplog.text
    assert feed.viewers == 0


async def test_a_viewer_that_goes_gives_its_place_back() -> None:
    feed = Feed(Maker(), HandClock(), max_viewers=1, interval_s=3600)
    shown, line = asyncio.Event(), Line()
    line.cycle = SimpleNamespace(disconnected=False)  # type: ignore[assignment]

    async def say_nothing() -> dict[str, Any]:
        raise AssertionError("the line says when the viewer goes")

    async def take(message: dict[str, Any]) -> None:
        if message.get("body"):
            shown.set()

    events = DashboardEvents(Dashboard(feed, on=True))
    serving = asyncio.create_task(events({"tandem_line": line}, say_nothing, take))  # type: ignore[arg-type]
    await asyncio.wait_for(shown.wait(), 10)
    assert feed.viewers == 1
    line.cycle.disconnected = True
    line.look()
    await asyncio.wait_for(serving, 10)
    assert feed.viewers == 0
