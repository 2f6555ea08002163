"""Settings of `tandem planner`, and the environment that its hook gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, Self

from pydantic import Field, field_validator, model_validator

from tandem.core.planner.demand import Outlook
from tandem.core.planner.loads import Comfort
from tandem.core.planner.steering import Rules
from tandem.rpc.logs import LogFormat
from tandem.rpc.settings import Settings

_LAST_PORT: Final = 65_535


class PlannerSettings(Settings, env_prefix="TANDEM_PLANNER_"):
    """Environment: TANDEM_PLANNER_<NAME>."""

    admin_address: str = Field(
        default="",
        description="host:port of each gateway's AdminService, separated by commas; empty: of the system run here",
    )
    metrics_address: str = Field(
        default="127.0.0.1:0", description="host:port of /metrics over plain HTTP; port 0 = any free one, empty = none"
    )
    apply: str = Field(default="", description="command that makes a change; empty: changes are only recommended")
    interval_ms: int = Field(default=1000, ge=200, le=60_000, description="time between two looks")
    costs: str = Field(
        default="",
        description="file of costs, of `tandem calibrate` or `tandem plan --costs`; empty: what one takes is measured",
    )
    full: float = Field(default=1.0, gt=0, le=10, description="a role is short at this demand per worker, or more")
    high: float = Field(
        default=0.8, gt=0, le=10, description="and hot at this; one that is below it without a worker could give it"
    )
    low: float = Field(default=0.5, ge=0, le=10, description="and spare at this, or less, without one of its workers")
    smooth_s: float = Field(default=15, gt=0, le=3600, description="in which the mean of demand forgets")
    clear_s: float = Field(default=120, gt=0, le=86_400, description="in which what waits should be gone")
    hold_s: float = Field(default=60, ge=0, le=86_400, description="how long a role is so before a change")
    ease_s: float = Field(
        default=1800, ge=0, le=86_400, description="and before a worker moves to a role that is hot and not short"
    )
    rest_s: float = Field(default=30, ge=0, le=86_400, description="after a change")
    move_s: float = Field(default=30, ge=0, le=86_400, description="for which a worker that moves serves nobody")
    patience_s: float = Field(default=300, ge=1, le=86_400, description="in which a change is made, or is given up")
    calm_s: float = Field(
        default=3600, ge=1, le=1e7, description="without a change of a role, after which one doubling is forgotten"
    )
    least: int = Field(default=1, ge=1, le=256, description="workers that each role keeps")
    most: int = Field(default=0, ge=0, le=256, description="workers in all; 0: none is added or removed")
    sequences: int = Field(
        default=0, ge=0, le=65_536, description="with which a worker that decodes is full; 0: as many as it runs"
    )
    drain_timeout_s: float = Field(
        default=120, ge=0, le=86_400, description="time for what runs on a worker that leaves, before the command"
    )
    apply_timeout_s: float = Field(default=300, gt=0, le=86_400, description="time for the command")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING, ERROR"
    )
    log_format: LogFormat = Field(default=LogFormat.HUMAN, description="human or json")

    @field_validator("admin_address")
    @classmethod
    def _each_gateway_once(cls, given: str) -> str:
        named = _gateways(given)
        for address in named:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
                raise ValueError(f"{address!r} is not host:port with a port of 1 to {_LAST_PORT}")
            if named.count(address) > 1:
                raise ValueError(f"{address} is there twice, and its requests would count twice")
        return given

    @model_validator(mode="after")
    def _thresholds_are_apart(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low, {self.low}, has to be below high, {self.high}")
        if self.high > self.full:
            raise ValueError(f"high, {self.high}, has to be at most full, {self.full}")
        return self

    @property
    def gateways(self) -> tuple[str, ...]:
        """Addresses of those that are watched."""
        return _gateways(self.admin_address)

    @property
    def rules(self) -> Rules:
        """How it decides."""
        return Rules(
            self.full,
            self.high,
            self.low,
            self.hold_s,
            self.ease_s,
            self.rest_s,
            self.move_s,
            self.patience_s,
            self.calm_s,
            self.least,
            self.most,
        )

    @property
    def comfort(self) -> Comfort:
        """When workers are full."""
        return Comfort(self.sequences)

    @property
    def outlook(self) -> Outlook:
        """Over which times it looks."""
        return Outlook(self.smooth_s, self.clear_s)


def _gateways(text: str) -> tuple[str, ...]:
    return tuple(part.strip().removeprefix("http://") for part in text.split(",") if part.strip())


def with_own(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, and some more."""
    return {**os.environ, **variables}
