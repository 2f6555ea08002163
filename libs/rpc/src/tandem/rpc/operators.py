"""Operators: who may call what changes a running system, and the record of what they changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.credentials import is_local

# In quotes: only the type checker knows gRPC's classes as generic ones.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CHANGES: Final = frozenset(
    {
        "/tandem.v1.AdminService/SetPolicy",
        "/tandem.v1.AdminService/DrainWorker",
        "/tandem.v1.AdminService/UndrainWorker",
        "/tandem.v1.AdminService/AbortRoom",
        "/tandem.v1.ControlService/SetLogLevel",
        "/tandem.v1.PrefillService/Abort",
        "/tandem.v1.DecodeService/Abort",
    }
)
"""Methods that change something and that no service calls: they are for operators."""
MAX_NAME_CHARS: Final = 128

audit = logging.getLogger("tandem.audit")
# A level of its own: a service that logs errors only still says who changed it.
audit.setLevel(logging.INFO)

caller: ContextVar[str] = ContextVar("tandem_caller", default="nobody")
"""The operator whose call the running task serves."""


def changed(what: str, before: str, after: str) -> None:
    """Records a change that the running call has made: one line with the operator's name."""
    audit.info("%s: %s: %s -> %s", caller.get(), what, before, after)


class Operators:
    """Admits calls of the methods in CHANGES. With certificates by name, without them from this machine only."""

    def __init__(self, names: frozenset[str], *, secure: bool) -> None:
        """names: any of them in a client's certificate makes it an operator's. secure: whether there are any."""
        self._names = names
        self._secure = secure

    def admit(self, method: str, context: _Context) -> None:
        """Notes the caller of a method that changes something. Raises FORBIDDEN if it may not; it is logged then."""
        if method not in CHANGES:
            return
        place = place_of(str(context.peer()))
        # A unix socket has no certificates whatever the credentials are; only this machine reaches it.
        certified = self._secure and not place.startswith("unix:")
        names = names_in(context.auth_context() or {}) if certified else ()
        try:
            known = self._checked(method, place, names, certified=certified)
        except TandemError as error:
            audit.warning("refused: %s", error.message)
            raise
        caller.set(f"{known} at {place}")

    def _checked(self, method: str, place: str, names: Sequence[str], *, certified: bool) -> str:
        """The name to note. Raises FORBIDDEN."""
        called = method.rpartition(".")[2]
        if certified:
            for name in names:
                if name in self._names:
                    return name
            shown = ", ".join(names) or "no name"
            allowed = ", ".join(sorted(self._names)) or "nobody's"
            raise TandemError(
                ErrorReason.FORBIDDEN,
                f"{called} is for operators: the certificate of the caller at {place} says {shown}, allowed is"
                f" {allowed} (TANDEM_TLS_ADMIN_IDENTITIES)",
            )
        if not is_local(place):
            raise TandemError(
                ErrorReason.FORBIDDEN,
                f"{called} is for operators: without TLS they call from the same machine, and {place} is not on it",
            )
        return "this machine"


def names_in(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Names that a client's certificate gives it: its common name, then its alternative names."""
    keys = ("x509_common_name", "x509_subject_alternative_name")
    names = (name.decode(errors="replace")[:MAX_NAME_CHARS] for key in keys for name in auth_context.get(key, ()))
    return tuple(dict.fromkeys(names))


def place_of(peer: str) -> str:
    """host:port of what gRPC says of a peer, e.g. `ipv6:%5B::1%5D:50051`; `unix:` and what follows stay as they are."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return unquote(peer)
    # A socket of both families shows IPv4 this way.
    return unquote(address).replace("[::ffff:127.0.0.1]", "127.0.0.1", 1)
