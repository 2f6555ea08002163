"""Operators: who may call what changes a running system, and the record of what they changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
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
        "/tandem.v1.UnifiedService/Abort",
        "/tandem.v1.PrefillService/SwitchRole",
        "/tandem.v1.DecodeService/SwitchRole",
        "/tandem.v1.UnifiedService/SwitchRole",
        "/tandem.v1.SystemService/SwitchWorker",
    }
)
"""Methods that change something and that no service calls: they are for operators."""
NOTED: Final = CHANGES | {"/tandem.v1.BootstrapService/Drain", "/tandem.v1.BootstrapService/Undrain"}
"""Methods whose caller is recorded: those, and what services call, too."""
MAX_NAME_CHARS: Final = 128

audit = logging.getLogger("tandem.audit")
# A level of its own: a service that logs errors only still says who changed it.
audit.setLevel(logging.INFO)

caller: ContextVar[str] = ContextVar("tandem_caller", default="nobody")
"""Who made the call that the running task serves, where that is recorded."""


def changed(what: str, before: str, after: str) -> None:
    """Records a change that the running call has made: one line with the operator's name."""
    audit.info("%s: %s: %s -> %s", caller.get(), what, before, after)


class Operators:
    """Admits calls of the methods in CHANGES: with certificates by name, without them from this machine only."""

    def __init__(self, names: frozenset[str], *, secure: bool) -> None:
        """names: any of them in a client's certificate makes it an operator's. secure: whether there are any."""
        self._names = names
        self._secure = secure

    def admit(self, method: str, context: _Context) -> None:
        """Notes the caller of a method that changes something. Raises FORBIDDEN if it may not; it is logged then."""
        if method not in NOTED:
            return
        place = place_of(str(context.peer()))
        # A unix socket has no certificates whatever the credentials are; only this machine reaches it.
        if self._secure and not place.startswith("unix:"):
            names = names_in(context.auth_context() or {})
            operator = next((name for name in names if name in self._names), "")
            known = operator or ", ".join(names) or "no name"
            allowed = ", ".join(sorted(self._names)) or "nobody's"
            reason = (
                f"the certificate of the caller at {place} says {known}, allowed is {allowed}"
                " (TANDEM_TLS_ADMIN_IDENTITIES)"
            )
        else:
            operator = known = "this machine" if is_local(place) else ""
            reason = f"without TLS they call from the same machine, and {place} is not on it"
        if method in CHANGES and not operator:
            text = f"{method.rpartition('.')[2]} is for operators: {reason}"
            audit.warning("refused: %s", text)
            raise TandemError(ErrorReason.FORBIDDEN, text)
        caller.set(f"{known or 'somebody'} at {place}")


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
