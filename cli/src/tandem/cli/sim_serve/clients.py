"""Who sends the requests: tenants with what each may have, and its part of the load."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Priority
from tandem.core.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Client:
    """One tenant's requests."""

    tenant: Tenant = field(default_factory=partial(Tenant, ""))
    share: float = 1.0
    """Of all requests, by the sum of the shares; above 0."""
    timeout_s: float = float("inf")
    """From a request's arrival to its end."""


ANYBODY: Final = Client()
_COUNTS: Final = ("requests_per_min", "tokens_per_min", "tokens_per_day", "max_concurrent")
_NUMBERS: Final = ("share", "timeout_s", "weight")
_NOT_USED: Final = ("keys", "models")
"""Of the gateway's file; requests are given to tenants by their shares, and there is one model."""


def sender(clients: Sequence[Client], seed: int) -> Callable[[], Client]:
    """Whose the next request is: drawn by their shares. clients: at least one."""
    if len(clients) == 1:
        return lambda: clients[0]
    dice, shares = random.Random(f"{seed} clients"), [one.share for one in clients]
    return lambda: dice.choices(clients, shares)[0]


def read_clients(path: Path) -> tuple[Client, ...]:
    """The gateway's file of tenants (docs/admission.md) with `share` and `timeout_s` besides.

    Raises INVALID_ARGUMENT, which names the field and what is allowed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad("tenants", f"{path} can't be read: {error}") from error
    named = document.get("tenants")
    if not isinstance(named, Mapping) or not named:
        raise _bad("tenants", f"{path} has no [tenants.NAME]")
    return tuple(_client(name, given) for name, given in named.items())


def _client(name: str, given: Any) -> Client:
    allowed = (*_NUMBERS, *_COUNTS, "priority", *_NOT_USED)
    where = f"tenants.{name}"
    if not isinstance(given, Mapping) or (strange := sorted(set(given) - set(allowed))):
        what = f"has {', '.join(strange)}" if isinstance(given, Mapping) else "is no table"
        raise _bad(where, f"'{where}' {what}; its fields are {', '.join(allowed)}")
    for key in _COUNTS:
        if key in given and not (type(given[key]) is int and given[key] >= 1):
            raise _bad(f"{where}.{key}", f"{given[key]!r} is not allowed: a whole number, at least 1")
    for key in _NUMBERS:
        if key in given and not (type(given[key]) in (int, float) and given[key] > 0):
            raise _bad(f"{where}.{key}", f"{given[key]!r} is not allowed: a number above 0")
    try:
        priority = Priority(given.get("priority", "normal"))
    except ValueError:
        classes = ", ".join(one.value for one in Priority)
        raise _bad(f"{where}.priority", f"{given['priority']!r} is not allowed: one of {classes}") from None
    limits = {key: given[key] for key in ("weight", *_COUNTS) if key in given}
    parts = {key: float(given[key]) for key in ("share", "timeout_s") if key in given}
    return Client(Tenant(name, priority=priority, **limits), **parts)


def _bad(name: str, text: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, text, field=name)
