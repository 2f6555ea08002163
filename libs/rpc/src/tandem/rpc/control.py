"""ControlService: the settings in force, and the log level, of the process that serves it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.operators import audit, changed
from tandem.rpc.server import GrpcServer
from tandem.rpc.settings import Settings
from tandem.v1 import control_pb2, control_pb2_grpc

SERVICE_NAME: Final = control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_FOR_MS: Final = 86_400_000

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Controlled:
    """What ControlService says of its process."""

    service: str
    """bootstrap, gateway, prefill or decode."""
    settings: tuple[Settings, ...]
    """Everything that the process has read from its environment."""
    worker_id: str = ""

    def describe(self) -> str:
        """`ENV_VAR=value` per line, secrets masked."""
        return "\n".join(each.describe() for each in self.settings)


class LogLevel:
    """A logger's level that may be changed for a while. Needs a running loop."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._stays = ""
        """What the level returns to; empty if it is not to return."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The level in force."""
        return logging.getLevelName(self._logger.level)

    def set(self, level: str, for_ms: int) -> str:
        """Takes a level, for good (for_ms = 0) or for a while; returns what it returns to, empty if it stays.

        A change for a while on top of another returns to what was in force before both. Raises INVALID_ARGUMENT.
        """
        if level not in LEVELS:
            text = f"no log level is named {level!r}; there are {', '.join(LEVELS)}"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="level")
        if not 0 <= for_ms <= MAX_FOR_MS:
            text = f"for_ms is {for_ms}, allowed: 1..{MAX_FOR_MS}, or 0 to stay"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="for_ms")
        before = self._stays or self.name
        self._forget_return()
        self._logger.setLevel(level)
        if for_ms:
            self._stays = before
            self._timer = asyncio.get_running_loop().call_later(for_ms / 1000, self._return)
        return self._stays

    def _return(self) -> None:
        before, after = self.name, self._stays
        self._forget_return()
        self._logger.setLevel(after)
        audit.info("time is over: log level: %s -> %s", before, after)

    def _forget_return(self) -> None:
        self._stays = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Messages in, messages out. Who may call is decided before: see tandem.rpc.operators."""

    def __init__(self, controlled: Controlled, level: LogLevel) -> None:
        self._controlled = controlled
        self._level = level

    async def GetSettings(  # noqa: N802 - the name is the contract's
        self, request: control_pb2.GetSettingsRequest, context: _Context
    ) -> control_pb2.GetSettingsResponse:
        """The settings in force, secrets masked."""
        del request, context
        return control_pb2.GetSettingsResponse(
            service=self._controlled.service,
            worker_id=self._controlled.worker_id,
            settings=_shown(self._controlled.settings),
            log_level=self._level.name,
        )

    async def SetLogLevel(  # noqa: N802
        self, request: control_pb2.SetLogLevelRequest, context: _Context
    ) -> control_pb2.SetLogLevelResponse:
        """Changes the log level of this process."""
        del context
        before = self._level.name
        returns_to = self._level.set(request.level, request.for_ms)
        changed("log level", before, f"{request.level} for {request.for_ms} ms" if request.for_ms else request.level)
        return control_pb2.SetLogLevelResponse(previous=before, returns_to=returns_to)


def _shown(settings: Sequence[Settings]) -> list[control_pb2.Setting]:
    return [
        control_pb2.Setting(variable=variable, value=value)
        for each in settings
        for variable, value in each.shown().items()
    ]


def add_control(server: GrpcServer, controlled: Controlled) -> None:
    """Adds ControlService over the root logger to a server of this process."""
    servicer = ControlServicer(controlled, LogLevel(logging.getLogger()))
    server.add(control_pb2_grpc.add_ControlServiceServicer_to_server, servicer, SERVICE_NAME)
