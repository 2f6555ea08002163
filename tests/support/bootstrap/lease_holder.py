"""A worker process that only keeps its lease: `python -m tests.support.bootstrap.lease_holder BOOTSTRAP WORKER_ID`."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys

from tandem.core.errors import TandemError
from tandem.rpc import logs
from tandem.rpc.client import open_channel
from tandem.rpc.exits import ExitCode
from tandem.rpc.lease import LeaseCallbacks, LeaseKeeper
from tandem.rpc.run import Stop, announce, run_service
from tests.support.bootstrap.workers import worker


async def hold(address: str, worker_id: str, stop: Stop) -> int:
    """Keeps the lease until asked to stop, or refused."""
    logs.setup("worker", worker_id=worker_id)

    def refused(error: TandemError) -> None:
        stop.request(str(error), ExitCode.REPLACED)

    async with open_channel(address) as channel:
        keeper = LeaseKeeper(
            channel,
            worker(worker_id),
            instance_id=secrets.token_bytes(16),
            rng=random.Random(),
            callbacks=LeaseCallbacks(fatal=refused),
        )
        life = await keeper.start(timeout_ms=20_000)
        announce("worker", str(life.incarnation))
        await stop.wait()
        await asyncio.wait_for(keeper.close(), 5)
    return stop.code


if __name__ == "__main__":
    sys.exit(run_service(lambda stop: hold(sys.argv[1], sys.argv[2], stop)))
