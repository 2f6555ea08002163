"""Commands whose output is read."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence


async def output(command: Sequence[str], env: Mapping[str, str], limit_s: float) -> str:
    """What `python -m` a command prints. Raises SystemExit if it fails, and TimeoutError if it takes too long."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env
    )
    try:
        said, errors = await asyncio.wait_for(process.communicate(), limit_s)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed: {errors.decode(errors='replace')[-2000:]}")
    return said.decode()
