"""The dashboard of a real system under load, as a picture: `python -m benchmarks.dashboard_picture`.

Two prefill and two decode workers with the mock engine. After a while one is killed, so that the picture has its loss.
Needs Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from tests.support.browser import DESKTOP, PHONE, browser, expect, opened
from tests.support.system.system import ROOT, System, running_system
from tests.support.system.traffic import traffic

PICTURE: Final = ROOT / "docs" / "images" / "dashboard.png"
CLIENTS: Final = 8
PACE: Final = ("prefill_us_per_token=150", "decode_us_per_step=8000", "chunk_tokens=128", "pages=256")
SHORTEST_S: Final = 1
LONGEST_S: Final = 600

Scheme = Literal["light", "dark"]


async def picture(system: System, path: Path, seconds: float, size: tuple[int, int], scheme: Scheme) -> None:
    """Looks for so many seconds, kills a decode worker, and takes the picture when the page says so."""
    async with (
        browser() as chromium,
        traffic(system, CLIENTS),
        opened(chromium, f"{system.url}/dashboard", size=size, scheme=scheme) as seen,
    ):
        await expect(seen.page.locator("#rooms tbody tr").first).to_be_visible()
        await asyncio.sleep(seconds)
        system.kill("decode-1")
        await expect(seen.page.locator("#workers tr.lost")).to_have_count(1)
        await seen.page.screenshot(path=path, full_page=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--seconds", type=float, default=120, help="how long it runs under load before the picture")
    parser.add_argument("--phone", action="store_true", help="as wide as a phone")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args(arguments)
    seconds = min(max(given.seconds, SHORTEST_S), LONGEST_S)
    pace = [part for one in PACE for part in ("--engine-arg", one)]
    size, scheme = PHONE if given.phone else DESKTOP, "dark" if given.dark else "light"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_system(Path(folder), "--engine", "mock", "--ratio", "2:2", *pace) as system,
    ):
        asyncio.run(picture(system, given.out, seconds, size, scheme))
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
