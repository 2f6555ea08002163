"""The command that makes a change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping

from tandem.cli.planner.settings import with_own
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerId
from tandem.core.planner.advice import Advice


def variables(advice: Advice, wanted: Mapping[Role, int], leaves: WorkerId | None) -> dict[str, str]:
    """What the command is told. leaves: the worker that is drained."""
    told = {
        "PLANNER_CHANGE": advice.change.value,
        "PLANNER_GIVES": advice.gives.value if advice.gives else "",
        "PLANNER_GETS": advice.gets.value if advice.gets else "",
        "PLANNER_WORKER": leaves or "",
        "PLANNER_REASON": advice.reason,
    }
    return told | {f"PLANNER_{role.name}": str(wanted.get(role, 0)) for role in Role}


async def run_hook(command: str, told: Mapping[str, str], timeout_s: float) -> None:
    """Runs it, without a shell, in a process group of its own. Raises INTERNAL where it can't be started, fails, or is
    ended because it takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), env=with_own(told), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise TandemError(ErrorReason.INTERNAL, f"{command!r} can't be started: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError:
        raise TandemError(ErrorReason.INTERNAL, f"{command!r} took longer than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code:
        raise TandemError(ErrorReason.INTERNAL, f"{command!r} ended with code {code}")
