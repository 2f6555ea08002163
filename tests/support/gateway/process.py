"""A gateway as a process of its own, beside whatever else runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.support.gateway.cluster import MODEL_PATH
from tests.support.settings import environment

START_S: Final = 150


@asynccontextmanager
async def gateway_process(bootstrap: str, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway process, and where it serves HTTP; it is gone afterwards. settings: variables of its environment."""
    own = {
        "TANDEM_GATEWAY_PORT": "0",
        "TANDEM_GATEWAY_ADMIN_ADDRESS": "127.0.0.1:0",
        "TANDEM_GATEWAY_MODEL_PATH": str(MODEL_PATH),
        "TANDEM_GATEWAY_BOOTSTRAP_ADDRESS": bootstrap,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem.gateway", stdout=asyncio.subprocess.PIPE, env=environment(**own, **settings)
    )
    try:
        assert child.stdout is not None
        line = (await asyncio.wait_for(child.stdout.readline(), START_S)).decode()
        assert line.startswith("listening gateway "), line
        yield child, line.split()[2]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
