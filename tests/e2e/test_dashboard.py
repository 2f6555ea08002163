"""The dashboard of a whole system in a real browser: what it shows is what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tandem.core.ids import WorkerId
from tests.support.browser import DESKTOP, PHONE, browser, expect, opened
from tests.support.system.system import System, running_system
from tests.support.system.traffic import traffic

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TRIES = 3
WORKERS = {"prefill-0", "prefill-1", "decode-0", "decode-1"}


@pytest.fixture(scope="module")
def square(folder: Path) -> Iterator[System]:
    """Two prefill and two decode workers."""
    options = ("--engine-arg", "decode_us_per_step=5000", "--engine-arg", "chunk_tokens=128")
    with running_system(folder, "--engine", "mock", "--ratio", "2:2", *options) as system:
        yield system


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    async with browser() as started:
        yield started


async def states(page: Page) -> dict[str, str]:
    """State by worker."""
    rows = "all => all.map((row) => [...row.querySelectorAll('.name, .state')].map((cell) => cell.textContent))"
    return dict(await page.locator("#workers tbody tr").evaluate_all(rows))


async def numbers(page: Page, title: str) -> list[int]:
    """A column of the table of workers."""
    cells = await page.locator(f'#workers td[data-title="{title}"]').all_text_contents()
    return [int(text) for text in cells]


async def test_it_loads_quietly_and_from_the_gateway_alone(square: System, chromium: Browser) -> None:
    async with opened(chromium, f"{square.url}/dashboard") as seen:
        await expect(seen.page.locator("#workers tbody tr")).to_have_count(len(WORKERS))
        assert await states(seen.page) == dict.fromkeys(WORKERS, "ready")
        await expect(seen.page.locator("#facts .pill.ready")).to_have_count(1)
        assert seen.hosts == {urlsplit(square.url).netloc}
        assert not seen.complaints


async def test_it_moves_under_load(square: System, chromium: Browser) -> None:
    async with opened(chromium, f"{square.url}/dashboard") as seen, traffic(square, clients=4):
        await expect(seen.page.locator("#workers tbody tr")).to_have_count(len(WORKERS))
        before = sum(await numbers(seen.page, "Ended well"))
        await expect(seen.page.locator("#rooms tbody tr").first).to_be_visible()
        for title in ("Requests/s", "Output tokens/s", "TTFT", "ITL"):
            plot = seen.page.locator("figure", has_text=title)
            await expect(plot.locator("polyline").first).to_be_attached()
            await expect(plot.locator("b").first).not_to_have_text("–")
        await expect(seen.page.locator("#links tbody tr")).to_have_count(4)
        await expect(seen.page.locator("details.trace")).to_have_count(5)
        await seen.page.wait_for_function(
            """before => [...document.querySelectorAll('#workers td[data-title="Ended well"]')]
                .reduce((sum, cell) => sum + Number(cell.textContent), 0) > before""",
            arg=before,
        )
        assert not seen.complaints


async def test_a_killed_worker_is_lost_and_comes_back(square: System, chromium: Browser) -> None:
    async with opened(chromium, f"{square.url}/dashboard") as seen:
        row = seen.page.locator("#workers tbody tr", has_text="decode-1")
        await expect(row.locator(".pill")).to_have_text("ready")
        first_life = await row.locator("td").last.text_content()
        await kill_until_seen(square, seen.page, "decode-1")
        await expect(row.locator(".pill")).to_have_text("ready")
        await expect(row.locator("td").last).not_to_have_text(first_life or "")
        await expect(seen.page.locator("#facts")).not_to_contain_text("lost")
        assert not seen.complaints


async def kill_until_seen(system: System, page: Page, name: str) -> None:
    """Kills a worker until the page shows it as lost: one that starts again at once may be back between two looks."""
    for _ in range(TRIES):
        system.kill(name)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await page.locator("#workers tr.lost", has_text=name).wait_for(state="attached")
                return
        await system.wait_view(lambda view: WorkerId(name) in view.workers)
    raise AssertionError(f"{name} was never shown as lost")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_nothing_is_wider_than_the_window(square: System, chromium: Browser, size: tuple[int, int]) -> None:
    async with opened(chromium, f"{square.url}/dashboard", size=size) as seen, traffic(square, clients=2):
        await expect(seen.page.locator("#rooms tbody tr").first).to_be_visible()
        assert await seen.overflow() <= 0
