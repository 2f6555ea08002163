"""What a test asks the services of a stack by gRPC, with a certificate that the stack made."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tandem.cli.cluster import Member, members_of_gateway
from tandem.cli.trace import trace_of
from tandem.core.cluster import ClusterView
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.watch import ClusterWatcher
from tests.support.docker.stack import Stack
from tests.support.tracing.whole import is_settled

WAIT_S: Final = 60
ADMIN_PORT: Final = 50051
BOOTSTRAP_PORT: Final = 50050


def credentials_in(folder: Path) -> Credentials:
    """Of a member's folder."""
    files = {"cert_file": folder / "cert.pem", "key_file": folder / "key.pem", "ca_file": folder / "ca.pem"}
    return Credentials.from_settings(TlsSettings.load(**files))


@dataclass(frozen=True, slots=True)
class Cluster:
    """The services of a stack, from this machine."""

    stack: Stack
    client: Credentials
    """Of the command `tandem`."""

    @classmethod
    def of(cls, stack: Stack, folder: Path) -> Cluster:
        """folder: where certificates may be written."""
        return cls(stack, credentials_in(stack.certificates("client", folder)))

    def dial(self, service: str, port: int) -> tuple[str, Credentials]:
        """host:port of a service, and credentials that expect its name."""
        return f"{self.stack.address(service)}:{port}", replace(self.client, server_name=service)

    async def members(self, wanted: int) -> dict[str, Member]:
        """What the first gateway knows of each worker, by name, once it knows of so many and all take requests."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await members_of_gateway(*self.dial("gateway", ADMIN_PORT))
                if len(found) == wanted and all(one.status and not one.status.draining for one in found):
                    return {member.info.worker.worker_id: member for member in found}
                await asyncio.sleep(0.2)  # AdminService has no stream of this

    async def wait_succeeded(self, role: str, rooms: int) -> None:
        """Asks the first gateway until the one worker of a role has ended so many rooms well, at least."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await members_of_gateway(*self.dial("gateway", ADMIN_PORT))
                (one,) = [member for member in found if member.info.worker.worker_id.startswith(role)]
                if one.status is not None and one.status.rooms_succeeded >= rooms:
                    return
                await asyncio.sleep(0.2)  # nor of this

    async def wait_trace(self, request_id: str) -> None:
        """Asks the first gateway until the trace of a request has all its spans."""
        async with asyncio.timeout(WAIT_S):
            address, credentials = self.dial("gateway", ADMIN_PORT)
            while True:
                if is_settled(await trace_of(address, request_id, credentials)):
                    return
                await asyncio.sleep(0.2)  # nor of this

    async def wait_view(self, wanted: Callable[[ClusterView], bool]) -> ClusterView:
        """Follows bootstrap until its workers are as wanted."""
        address, credentials = self.dial("bootstrap", BOOTSTRAP_PORT)
        async with open_channel(address, credentials) as channel:
            watcher = ClusterWatcher(channel, rng=random.Random(1))
            watcher.start()
            try:
                return await watcher.wait_for(wanted, WAIT_S * 1000)
            finally:
                await watcher.close()

    async def wait_workers(self, count: int) -> None:
        """Follows bootstrap until so many workers are registered."""
        await self.wait_view(lambda view: len(view.workers) == count)
