"""The machine's own Chromium, without a window, and what a page did in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, LocatorAssertions, Page, Request

CHROMIUM: Final = "chromium"
DESKTOP: Final = (1360, 900)
PHONE: Final = (390, 844)
TIMEOUT_MS: Final = 30_000


def expect(locator: Locator) -> LocatorAssertions:
    """What a part of a page is to become, sooner or later."""
    from playwright.async_api import expect as expected

    expected.set_options(timeout=TIMEOUT_MS)
    return expected(locator)


@dataclass
class Opened:
    """A page, and what it did since it was opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on its console, and exceptions that nobody caught."""
    hosts: set[str] = field(default_factory=set)
    """host:port of everything that it asked for."""

    async def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        wide: int = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return wide


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser of its own, with nothing kept from before. Nothing is downloaded for it."""
    from playwright.async_api import async_playwright

    path = shutil.which(CHROMIUM)
    assert path is not None, "the marker `browser` is missing"
    # Chromium's sandbox does not start as root.
    unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=path, args=unboxed)
        try:
            yield started
        finally:
            await started.close()


@asynccontextmanager
async def opened(
    browser: Browser,
    url: str = "",
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
) -> AsyncIterator[Opened]:
    """A page of a given size in pixels; goes to `url`, if there is one."""
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT_MS)
    page = await context.new_page()
    now = Opened(page)
    page.on("console", lambda said: now.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: now.complaints.append(str(error)))

    def note(request: Request) -> None:
        now.hosts.add(urlsplit(request.url).netloc)

    page.on("request", note)
    try:
        if url:
            await page.goto(url)
        yield now
    finally:
        await context.close()
