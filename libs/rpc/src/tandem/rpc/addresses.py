"""Which host a process tells others to dial, where it listens on every address of its machine."""

from __future__ import annotations

import socket
from typing import Final

WILDCARDS: Final = frozenset({"0.0.0.0", "::", "[::]"})
"""Every address of the machine: good to listen on, no use to dial."""
_OUTSIDE: Final = ("192.0.2.1", 9)
"""An address of nobody (RFC 5737). Nothing is sent there."""


def host_to_dial(listen_host: str, advertise_host: str = "") -> str:
    """`advertise_host` if there is one; else `listen_host`, or this machine's own address in place of a wildcard.

    Raises OSError if the machine's address can't be found.
    """
    if advertise_host:
        return advertise_host
    return own_address() if listen_host in WILDCARDS else listen_host


def own_address() -> str:
    """This machine's IPv4 address towards others. Raises OSError if it can't be found.

    It is the source address of the default route, or, on a network without one, what the host's own name stands for.
    """
    try:
        return _routed_address()
    except OSError:
        return socket.gethostbyname(socket.gethostname())


def _routed_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_OUTSIDE)
        return str(probe.getsockname()[0])
