"""What an operator shows and changes of running services: policy, log level, settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc

from tandem.cli.services import TIMEOUT_S, Answer, Service, answer_of, ask_each
from tandem.core.ids import Role
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.v1 import admin_pb2, admin_pb2_grpc, common_pb2, control_pb2, control_pb2_grpc

LOG_LEVEL: Final = "log level"


async def set_policy(
    admin: str, credentials: Credentials, policy: str, role: Role | None
) -> admin_pb2.SetPolicyResponse:
    """Changes how a gateway chooses workers. Raises TandemError, which names the policies that exist."""
    wanted = common_pb2.ROLE_UNSPECIFIED if role is None else convert.role_to_proto(role)
    async with open_channel(admin, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        call = stub.SetPolicy(admin_pb2.SetPolicyRequest(policy=policy, role=wanted), timeout=TIMEOUT_S)
        answer: admin_pb2.SetPolicyResponse = await answer_of(call, f"the gateway at {admin}")
    return answer


async def set_log_level(services: Sequence[Service], credentials: Credentials, level: str, for_ms: int) -> list[Answer]:
    """Changes the log level of services; messages are SetLogLevelResponse."""
    request = control_pb2.SetLogLevelRequest(level=level, for_ms=for_ms)

    def question(service: Service, channel: grpc.aio.Channel) -> Any:
        del service
        stub: Any = control_pb2_grpc.ControlServiceStub(channel)
        return stub.SetLogLevel(request, timeout=TIMEOUT_S)

    return await ask_each(services, credentials, question)


async def settings_of(services: Sequence[Service], credentials: Credentials) -> list[Answer]:
    """The settings in force of services; messages are GetSettingsResponse."""

    def question(service: Service, channel: grpc.aio.Channel) -> Any:
        del service
        stub: Any = control_pb2_grpc.ControlServiceStub(channel)
        return stub.GetSettings(control_pb2.GetSettingsRequest(), timeout=TIMEOUT_S)

    return await ask_each(services, credentials, question)


def settings_lines(answers: Sequence[Answer]) -> Iterator[str]:
    """For a person: a title for each service that has answered, then `ENV_VAR=value` per line."""
    for answer in answers:
        if answer.message is not None:
            yield f"# {answer.service.name}, {LOG_LEVEL} {answer.message.log_level}"
            yield from (f"{one.variable}={one.value}" for one in answer.message.settings)
            yield ""


def settings_document(answers: Sequence[Answer]) -> dict[str, Any]:
    """The same as JSON, by name of the service."""
    return {
        answer.service.name: {
            "service": answer.message.service,
            "log_level": answer.message.log_level,
            "settings": {one.variable: one.value for one in answer.message.settings},
        }
        for answer in answers
        if answer.message is not None
    }
