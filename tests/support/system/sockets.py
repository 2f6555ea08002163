"""Every listening socket of a system, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from tests.support.system.system import System


@dataclass(frozen=True, order=True)
class Listener:
    """One listening socket."""

    owner: str
    """Process of the system, e.g. "prefill-0"."""
    address: str
    """host:port."""

    @property
    def host(self) -> str:
        """Its host."""
        return self.address.rpartition(":")[0]


def listeners(system: System) -> list[Listener]:
    """Of every process: TCP sockets that listen, and UDP sockets that are bound and not connected."""
    found = set()
    for pid, owner in system.processes().items():
        for socket in psutil.Process(pid).net_connections(kind="inet"):
            waits = socket.status == psutil.CONN_LISTEN or (socket.status == psutil.CONN_NONE and not socket.raddr)
            if waits and socket.laddr:
                # gRPC listens on IPv4 through IPv6 sockets: nobody but IPv4's loopback reaches ::ffff:127.0.0.1.
                found.add(Listener(owner, f"{socket.laddr.ip.removeprefix('::ffff:')}:{socket.laddr.port}"))
    return sorted(found)
