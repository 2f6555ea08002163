"""The tenants of a gateway: their file, and the account of each."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Priority
from tandem.core.share import WHOLE, Share
from tandem.core.tenants import Account, Tenant
from tandem.gateway.admission.watched_file import WatchedFile

log = logging.getLogger(__name__)

MAX_TENANTS: Final = 4096
RATE_HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
_MOST: Final = 1 << 53
_Count = Annotated[int, Field(ge=1, le=_MOST)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class _Limits(BaseModel):
    """What `[default]` may say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    priority: Annotated[Priority, Field(strict=False)] = Priority.NORMAL
    requests_per_min: _Count | None = None
    tokens_per_min: _Count | None = None
    tokens_per_day: _Count | None = None
    max_concurrent: _Count | None = None
    models: Annotated[list[str], Field(max_length=1024)] = []


class _Named(_Limits):
    """What `[tenants.NAME]` may say."""

    keys: Annotated[list[_Name], Field(max_length=MAX_TENANTS)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    default: _Limits = _Limits()
    tenants: Annotated[dict[_Name, _Named], Field(max_length=MAX_TENANTS)] = {}


@dataclass(frozen=True, slots=True)
class TenantList:
    """Who is who."""

    default: Tenant = field(default_factory=partial(Tenant, ""))
    """Of those that are not named: each key is a tenant of its own; where no key is needed, all are one."""
    by_key: Mapping[str, Tenant] = field(default_factory=dict)
    """By the name of a key."""

    def of_key(self, owner: str) -> Tenant:
        """owner: name of a key; empty where none is needed."""
        return self.by_key.get(owner) or replace(self.default, name=f"key:{owner}")


def parse(text: str, share: Share = WHOLE) -> TenantList:
    """Reads a file of tenants. share: of each limit, if several processes count for themselves.

    Raises INVALID_ARGUMENT, which names every field at fault.
    """
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"it is not TOML: {error}") from None
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise TandemError(ErrorReason.INVALID_ARGUMENT, "; ".join(found)) from None
    by_key: dict[str, Tenant] = {}
    for name, limits in file.tenants.items():
        tenant = _tenant(name, limits, share)
        for key in (name,) if limits.keys is None else limits.keys:
            if key in by_key:
                text = f"tenants.{name}.keys: the key {key} is of tenant {by_key[key].name} already"
                raise TandemError(ErrorReason.INVALID_ARGUMENT, text)
            by_key[key] = tenant
    return TenantList(_tenant("", file.default, share), by_key)


def _tenant(name: str, limits: _Limits, share: Share) -> Tenant:
    def part(limit: str) -> int:
        whole: int = getattr(limits, limit) or 0
        if 0 < whole < share.count:
            field = f"tenants.{name}.{limit}" if name else f"default.{limit}"
            text = f"{field}: {whole} is not enough for the {share.count} processes of this gateway, which share it out"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field=field)
        return share.of(whole)

    return Tenant(
        name,
        limits.weight,
        limits.priority,
        part("requests_per_min"),
        part("tokens_per_min"),
        part("tokens_per_day"),
        part("max_concurrent"),
        frozenset(limits.models),
    )


@dataclass(slots=True)
class Bill:
    """What one request is charged for."""

    used: int = 0
    """Tokens that were computed."""


class Tenants:
    """Accounts, by tenant; there are as many as there are keys, at most."""

    def __init__(
        self,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        share: Share = WHOLE,
    ) -> None:
        """clock: monotonic seconds. wall: seconds since 1970. share: of each limit that this process gives.

        Raises INVALID_ARGUMENT or OSError if the file can't be used.
        """
        self._file = None if file is None else WatchedFile(file, partial(parse, share=share), clock)
        self._listed = TenantList() if self._file is None else self._file.value()
        self._clock = clock
        self._wall = wall
        self._accounts: dict[str, Account] = {}
        """By the name of a tenant."""
        self._by_owner: dict[str, Account] = {}

    def account_of(self, owner: str) -> Account:
        """The account of the key of a request. What was used is forgotten where the limits have changed."""
        if self._file is not None and (listed := self._file.value()) is not self._listed:
            self._listed = listed
            self._by_owner.clear()
        account = self._by_owner.get(owner)
        if account is None:
            account = self._by_owner[owner] = self._account_for(self._listed.of_key(owner))
        return account

    def _account_for(self, tenant: Tenant) -> Account:
        account = self._accounts.get(tenant.name)
        if account is None or account.tenant != tenant:
            account = self._accounts[tenant.name] = Account(tenant, self._clock())
        return account

    def count_request(self, account: Account) -> None:
        """A request has come. Raises Refused."""
        account.count_request(self._clock())

    @contextmanager
    def charged(self, account: Account, tokens: int) -> Iterator[Bill]:
        """Charges the most that a request can need, and gives back what it did not.

        Raises Refused, INVALID_ARGUMENT.
        """
        account.charge(tokens, self._clock(), self._wall())
        bill = Bill()
        try:
            yield bill
        finally:
            account.give_back(max(0, tokens - bill.used), self._clock(), self._wall())

    def headers(self, account: Account) -> dict[str, str]:
        """How a tenant stands with its limits per minute, as OpenAI's clients read it."""
        found: dict[str, str] = {}
        for one in account.standings(self._clock()):
            found[f"x-ratelimit-limit-{one.kind}"] = str(one.limit)
            found[f"x-ratelimit-remaining-{one.kind}"] = str(one.left)
            found[f"x-ratelimit-reset-{one.kind}"] = duration(one.reset_s)
        return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: `0s`, `250ms`, `1.5s`, `6m0s`."""
    millis = round(seconds * 1000)
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    minutes, rest = divmod(millis, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
