"""Asks a service by grpc.health.v1 whether it is ready: `python -m tandem.rpc.probe HOST:PORT`, exit code 0 or 1."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.core.errors import TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import PLAIN, Credentials, TlsSettings

TIMEOUT_MS: Final = 3_000


async def why_not_ready(address: str, credentials: Credentials = PLAIN, timeout_ms: int = TIMEOUT_MS) -> str:
    """What keeps the service at host:port from being ready; empty if it is."""
    try:
        async with open_channel(address, credentials) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_ms / 1000)
    except TandemError as error:
        return str(error)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main() -> None:
    """Exits 0 if the service is ready; else 1, with the reason on stderr."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tandem.rpc.probe HOST:PORT")
    sys.exit(asyncio.run(why_not_ready(sys.argv[1], Credentials.from_settings(TlsSettings.load()))) or 0)


if __name__ == "__main__":
    main()
