"""One request's trace as a picture and as text: `python -m benchmarks.trace_picture`.

The dashboard's waterfall of a real request goes to docs/images/trace.png, and what `tandem trace` prints of the same
request between the markers of docs/tracing.md. One prefill and one decode worker with SGLang on the CPU, or the mock
engine. Needs Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Final

from benchmarks.fault_matrix import filled
from tests.support.browser import DESKTOP, PHONE, browser, expect, opened
from tests.support.settings import environment
from tests.support.system.asking import prompt_of, streamed
from tests.support.system.system import ROOT, System, running_system

PICTURE: Final = ROOT / "docs" / "images" / "trace.png"
PAGE: Final = ROOT / "docs" / "tracing.md"
NAME, MADE_BY = "trace", "benchmarks/trace_picture.py"
SHOWN: Final = "shown"
PROMPT_TOKENS, NEW_TOKENS = 320, 20
COLUMNS: Final = 120
ENGINES: Final = {
    "sglang": ("--page-size", "16", "--engine-arg", "chunked_prefill_size=64"),
    "mock": (
        *("--engine-arg", "chunk_tokens=64", "--engine-arg", "prefill_us_per_token=200"),
        *("--engine-arg", "decode_us_per_step=3500"),
    ),
}


async def picture(system: System, path: Path, size: tuple[int, int], dark: bool) -> None:
    """Asks twice, as a first request makes links and warms the engine up, and takes the picture of the second."""
    async with browser() as chromium, system.client() as client:
        await streamed(client, prompt_of(PROMPT_TOKENS, seed=1), NEW_TOKENS, ignore_eos=True)
        await system.wait_idle()
        client.headers["X-Request-Id"] = SHOWN
        await streamed(client, prompt_of(PROMPT_TOKENS, seed=2), NEW_TOKENS, ignore_eos=True)
        await system.wait_idle()
        scheme = "dark" if dark else "light"
        async with opened(chromium, f"{system.url}/dashboard", size=size, scheme=scheme) as seen:
            trace = seen.page.locator("details.trace", has_text=SHOWN)
            await expect(trace.locator(".step", has_text="landing")).to_be_visible()
            await seen.page.locator("section", has=trace).screenshot(path=path)


def text_of(system: System) -> str:
    """What `tandem trace` prints into a pipe."""
    command = [sys.executable, "-m", "tandem.cli", "trace", SHOWN, "--admin", system.state.admin]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the picture and the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--page", type=Path, help="a page with the markers, for the text; without: it is printed")
    parser.add_argument("--engine", choices=ENGINES, default="sglang")
    parser.add_argument("--phone", action="store_true", help="as wide as a phone")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args(arguments)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_system(Path(folder), "--engine", given.engine, *ENGINES[given.engine]) as system,
    ):
        asyncio.run(picture(system, given.out, PHONE if given.phone else DESKTOP, given.dark))
        text = text_of(system)
    if given.page is None:
        print(text)
    else:
        page = given.page.read_text(encoding="utf-8")
        body = f"\n{indent(text, '    ')}\n"
        given.page.write_text(filled(page, body, name=NAME, made_by=MADE_BY), encoding="utf-8")
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
