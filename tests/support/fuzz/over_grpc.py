"""Mutated messages for every gRPC method of a system, sent as bytes, so that they need not be messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tandem.core.errors import ErrorReason
from tandem.v1 import (
    admin_pb2,
    bootstrap_pb2,
    common_pb2,
    control_pb2,
    decode_pb2,
    kv_link_pb2,
    prefill_pb2,
    session_pb2,
    trace_pb2,
)
from tests.support.fuzz.mutations import mutate_bytes

CALL_S: Final = 20.0
READ: Final = 3
"""Answers that are read of a stream before it is given up."""
PATIENCE_S: Final = 0.02
"""And how long for each: streams of news have none to tell."""
OF_THE_CLIENT: Final = "Internal error from Core"
"""What gRPC's client says where a call has ended while it still wrote; the server's log tells of its own failures."""
DEEP: Final = 4
VERSION: Final = common_pb2.ProtocolVersion(major=1, minor=1, feature_bits=1)
FIRST: Final[Mapping[str, Message]] = {
    "Session": session_pb2.SessionRequest(hello=session_pb2.SessionHello(version=VERSION, gateway_id="fuzz")),
    "Link": kv_link_pb2.LinkRequest(hello=kv_link_pb2.LinkHello(version=VERSION)),
}
"""What a stream may begin with, so that what follows is read."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one service that runs."""

    path: str
    request: type[Message]
    streams_in: bool


def methods_of(module: Any) -> Iterator[Method]:
    """Those of a module of stubs."""
    for service in module.DESCRIPTOR.services_by_name.values():
        for one in service.methods:
            yield Method(f"/{service.full_name}/{one.name}", GetMessageClass(one.input_type), one.client_streaming)


SERVED: Final[Mapping[str, tuple[Method, ...]]] = {
    kind: tuple(method for module in modules for method in methods_of(module))
    for kind, modules in {
        "bootstrap": (bootstrap_pb2, control_pb2, trace_pb2),
        "prefill": (prefill_pb2, control_pb2, trace_pb2),
        "decode": (decode_pb2, control_pb2, trace_pb2),
        "admin": (admin_pb2, control_pb2, trace_pb2),
        "link": (kv_link_pb2,),
    }.items()
}
"""Methods by who serves them; link: the port of a prefill rank."""


def filled(dice: random.Random, kind: type[Message], depth: int = 0) -> Message:
    """A message with some of its fields set to values that look right, or are at an edge."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.3 or depth > DEEP:
            continue
        count = dice.choice((0, 1, 1, 2, 30)) if field.is_repeated else 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        values = [_value(dice, field, depth) for _ in range(count)]
        if field.is_repeated and field.message_type is None:
            getattr(message, field.name).extend(values)
        elif field.is_repeated:
            for value in values:
                getattr(message, field.name).add().CopyFrom(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message


def _value(dice: random.Random, field: descriptor.FieldDescriptor, depth: int) -> Any:
    kinds = descriptor.FieldDescriptor
    match field.cpp_type:
        case kinds.CPPTYPE_MESSAGE:
            assert field.message_type is not None
            return filled(dice, GetMessageClass(field.message_type), depth + 1)
        case kinds.CPPTYPE_ENUM:
            return dice.choice((0, 1, 2, 3, 99))
        case kinds.CPPTYPE_BOOL:
            return dice.random() < 0.5
        case kinds.CPPTYPE_DOUBLE | kinds.CPPTYPE_FLOAT:
            return dice.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30))
        case kinds.CPPTYPE_STRING if field.type == kinds.TYPE_BYTES:
            return dice.randbytes(dice.choice((0, 1, 16, 16, 300)))
        case kinds.CPPTYPE_STRING:
            return dice.choice(
                ("", "fuzz-1", "fuzz", "tandem-tiny", "127.0.0.1:1", "bfloat16", "kv", "tcp", "é\x00", "x" * 5000)
            )
        case kinds.CPPTYPE_UINT32:
            return dice.choice((0, 1, 2, 16, 2**31, 2**32 - 1))
        case kinds.CPPTYPE_INT32:
            return dice.choice((0, 1, -1, 2**31 - 1, -(2**31)))
        case kinds.CPPTYPE_UINT64:
            return dice.choice((0, 1, 2, 2**63, 2**64 - 1, dice.getrandbits(63)))
        case _:
            return dice.choice((0, 1, -1, 2**63 - 1, -(2**63)))


def payloads(dice: random.Random, method: Method) -> tuple[bytes, ...]:
    """What to send: one message, or some of a stream."""
    count = dice.randint(1, 4) if method.streams_in else 1
    found = [filled(dice, method.request).SerializeToString() for _ in range(count)]
    first = FIRST.get(method.path.rpartition("/")[2])
    if first is not None and dice.random() < 0.8:
        found.insert(0, first.SerializeToString())
    broken = dice.random() < 0.5
    return tuple(mutate_bytes(dice, one) if broken and dice.random() < 0.6 else one for one in found)


async def call(channel: grpc.aio.Channel, method: Method, sent: Sequence[bytes]) -> str:
    """Makes one call and gives it up soon. Returns what is wrong with how it ended; empty if nothing is."""

    async def stream() -> Any:
        for one in sent:
            yield one

    made: Any
    if method.streams_in:
        made = channel.stream_stream(method.path)(stream(), timeout=CALL_S)
    else:
        made = channel.unary_stream(method.path)(sent[0], timeout=CALL_S)
    try:
        for _ in range(READ):
            reading = asyncio.ensure_future(made.read())
            done, _ = await asyncio.wait({reading}, timeout=PATIENCE_S if method.streams_in else CALL_S / 4)
            if not done:
                made.cancel()
                await asyncio.wait({reading})
                reading.cancelled() or reading.exception()
                return ""
            if reading.result() is grpc.aio.EOF:
                break
        else:
            made.cancel()
            return ""
        code, details, trailing = await made.code(), await made.details(), await made.trailing_metadata()
        return _problem(method, code, details, dict(trailing or ()))
    except grpc.aio.AioRpcError as error:
        return _problem(method, error.code(), error.details(), dict(error.trailing_metadata() or ()))


def _problem(method: Method, code: grpc.StatusCode, details: str | None, trailing: Mapping[str, Any]) -> str:
    if code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
        return ""
    if OF_THE_CLIENT in (details or ""):
        return ""
    reason = trailing.get("tandem-reason", "")
    if reason in ErrorReason.__members__ and reason != ErrorReason.INTERNAL.value:
        return ""
    return f"{method.path}: {code.name} {details} {reason}"
