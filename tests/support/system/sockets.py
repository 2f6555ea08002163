"""Every listening socket of a system, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import psutil

from tests.support.system.system import System


@dataclass(frozen=True, order=True)
class Listener:
    """One listening socket."""

    owner: str
    """Process of the system, e.g. "prefill-0"."""
    address: str
    """host:port."""
    program: str = field(default="", compare=False)
    """Name of the very process that listens, which may be a child of its owner."""

    @property
    def host(self) -> str:
        """Its host."""
        return self.address.rpartition(":")[0]


def listeners(system: System) -> list[Listener]:
    """Of every process: TCP sockets that listen, and UDP sockets that are bound and not connected."""
    found = set()
    for pid, owner in system.processes().items():
        process = psutil.Process(pid)
        for socket in process.net_connections(kind="inet"):
            waits = socket.status == psutil.CONN_LISTEN or (socket.status == psutil.CONN_NONE and not socket.raddr)
            if waits and socket.laddr:
                # gRPC listens on IPv4 through IPv6 sockets: nobody but IPv4's loopback reaches ::ffff:127.0.0.1.
                host = socket.laddr.ip.removeprefix("::ffff:")
                found.add(Listener(owner, f"{host}:{socket.laddr.port}", process.name()))
    return sorted(found)
