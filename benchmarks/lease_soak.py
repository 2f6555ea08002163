"""Counts false expirations of leases while every core is busy: `python benchmarks/lease_soak.py --minutes 10`.

Starts a bootstrap process with its default lease, workers that only keep their lease, each a process
of its own, and twice as many processes that burn CPU as there are cores. A worker that leaves the
watched view while its process lives is a false expiration. Exit code 0: there was none.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
from contextlib import AsyncExitStack
from multiprocessing import cpu_count

from tandem.core.cluster import RankEndpoint, WorkerInfo
from tandem.core.ids import Incarnation, RankId, Role, WorkerId, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.version import CURRENT
from tandem.rpc import logs
from tandem.rpc.client import open_channel
from tandem.rpc.lease import LeaseKeeper
from tandem.rpc.run import Stop, announce, run_service
from tandem.rpc.watch import ClusterWatcher, WatchCallbacks

START_TIMEOUT_S = 120
BURN = "while True: pass"
# Port 0 by argument, so that a bootstrap that runs already is left alone.
BOOTSTRAP = """
from tandem.bootstrap.app import serve
from tandem.bootstrap.settings import BootstrapSettings
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.run import run_service
raise SystemExit(run_service(lambda stop: serve(BootstrapSettings.load(port=0), TlsSettings.load(), stop)))
"""


def worker(worker_id: str) -> WorkerInfo:
    """A worker that nobody will route to."""
    return WorkerInfo(
        life=WorkerLife(WorkerId(worker_id), Incarnation(0)),
        role=Role.DECODE,
        models=("none",),
        address="127.0.0.1:1",
        layout=KvLayout(1, "float32", 1, "nhd", 1, 1, (PoolLayout("kv", (1,), 1),)),
        ranks=(RankEndpoint(RankId(), ""),),
        context_tokens=1,
        max_running=1,
        total_pages=1,
        protocol=CURRENT,
    )


async def hold(address: str, worker_id: str, stop: Stop) -> int:
    """A worker process: keeps a lease until asked to stop."""
    logs.setup("worker", worker_id=worker_id, level="WARNING")
    async with open_channel(address) as channel:
        keeper = LeaseKeeper(
            channel, worker(worker_id), instance_id=secrets.token_bytes(16), rng=random.Random(worker_id)
        )
        await keeper.start(START_TIMEOUT_S * 1000)
        announce("worker", str(keeper.incarnation))
        await stop.wait()
        await keeper.close()
    return stop.code


async def spawn(stack: AsyncExitStack, *arguments: str) -> asyncio.subprocess.Process:
    """A child that ends with the stack."""
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)

    async def end() -> None:
        if child.returncode is None:
            child.terminate()
        await child.wait()

    stack.push_async_callback(end)
    return child


async def announced(child: asyncio.subprocess.Process, service: str) -> str:
    """What a child says of this service of its when it is up; what it says of others before is passed over."""
    assert child.stdout is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        async for line in child.stdout:
            word, name, address = line.decode().split()
            if (word, name) == ("listening", service):
                return address
    raise RuntimeError(f"{service} has ended before it listened")


async def soak(minutes: float, workers: int, burners: int) -> int:
    """Runs it all; returns the exit code."""
    left: list[WorkerLife] = []
    async with AsyncExitStack() as stack:
        bootstrap = await spawn(stack, "-c", BOOTSTRAP)
        address = await announced(bootstrap, "bootstrap")
        channel = await stack.enter_async_context(open_channel(address))
        for number in range(workers):
            await announced(await spawn(stack, __file__, "--hold", address, f"w{number}"), "worker")
        watcher = ClusterWatcher(channel, rng=random.Random(0), callbacks=WatchCallbacks(left=left.append))
        watcher.start()
        stack.push_async_callback(watcher.close)
        await watcher.wait_for(lambda view: len(view.workers) == workers, START_TIMEOUT_S * 1000)
        for _ in range(burners):
            await spawn(stack, "-c", BURN)
        print(f"{workers} workers, {burners} burners on {cpu_count()} cores, {minutes:g} minutes", flush=True)
        await asyncio.sleep(minutes * 60)
        false_expirations = len(left)
    print(f"false expirations: {false_expirations}")
    return 1 if false_expirations else 0


def main() -> int:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--burners", type=int, default=2 * cpu_count())
    parser.add_argument("--hold", nargs=2, metavar=("BOOTSTRAP", "WORKER_ID"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        address, worker_id = arguments.hold
        return run_service(lambda stop: hold(address, worker_id, stop))
    return asyncio.run(soak(arguments.minutes, arguments.workers, arguments.burners))


if __name__ == "__main__":
    sys.exit(main())
