"""The health probe against real servers, and as the command that containers run."""

from __future__ import annotations

import asyncio
import sys

from tandem.rpc.probe import why_not_ready
from tandem.rpc.server import GrpcServer


async def test_it_tells_a_ready_server_from_others() -> None:
    server = GrpcServer()
    address = server.bind("127.0.0.1:0")
    await server.start()
    assert await why_not_ready(address) == "NOT_SERVING"
    await server.set_ready(True)
    assert await why_not_ready(address) == ""
    assert await command(address) == (0, "")
    await server.drain()
    assert await why_not_ready(address) == "NOT_SERVING"
    await server.stop(0)
    assert (await why_not_ready(address)).startswith("UNAVAILABLE: ")
    code, said = await command(address)
    assert code == 1
    assert said.startswith("UNAVAILABLE: ")


async def command(address: str) -> tuple[int | None, str]:
    """Exit code and stderr of the command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem.rpc.probe", address, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()
