"""Compares protos/ with the descriptors of the last release, and names every change that would break a peer.

    python -m tools.check_protos                  # part of make check
    python -m tools.check_protos --save v0.2.0    # at a release

A message, field, enum value, service or method of the release must still be there with the same number and type.
Adding is free. A removed field may be named in `reserved` in a new package (tandem.v2), never here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet

from tools.proto_set import PROTOS, ROOT, compile_set

RELEASED = PROTOS / "released"

Facts = dict[str, str]
"""What a peer relies on: name of a thing, to what must not change about it."""


def field_fact(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Number, type and cardinality of a field, and the oneof that it is in."""
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    oneof = ""
    if field.HasField("oneof_index") and not field.proto3_optional:
        oneof = f" in oneof {message.oneof_decl[field.oneof_index].name}"
    presence = " with presence" if field.proto3_optional else ""
    return f"{label} {kind} {field.type_name} = {field.number}{oneof}{presence}"


def message_facts(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    """Facts of a message and of what is nested in it."""
    name = f"{prefix}.{message.name}"
    yield f"message {name}", "is there"
    for field in message.field:
        yield f"field {name}.{field.name}", field_fact(message, field)
    for nested in message.nested_type:
        yield from message_facts(name, nested)
    yield from enum_facts(name, message.enum_type)


def enum_facts(prefix: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[tuple[str, str]]:
    """Facts of enums."""
    for enum in enums:
        yield f"enum {prefix}.{enum.name}", "is there"
        for value in enum.value:
            yield f"enum value {prefix}.{enum.name}.{value.name}", f"= {value.number}"


def facts(descriptors: FileDescriptorSet) -> Facts:
    """All facts of a descriptor set."""
    found: Facts = {}
    for file in descriptors.file:
        for message in file.message_type:
            found.update(message_facts(file.package, message))
        found.update(enum_facts(file.package, file.enum_type))
        for service in file.service:
            found[f"service {file.package}.{service.name}"] = "is there"
            for method in service.method:
                shape = (
                    f"{'stream ' if method.client_streaming else ''}{method.input_type} -> "
                    f"{'stream ' if method.server_streaming else ''}{method.output_type}"
                )
                found[f"rpc {file.package}.{service.name}.{method.name}"] = shape
    return found


def breaks(old: Facts, new: Facts) -> list[str]:
    """One line for each fact of `old` that `new` does not keep."""
    return [
        f"{name}: was `{fact}`, " + (f"is `{new[name]}`" if name in new else "is gone")
        for name, fact in old.items()
        if new.get(name) != fact
    ]


def version_key(path: Path) -> tuple[int, ...]:
    """Sorts v0.9.0 before v0.10.0."""
    return tuple(int(part) for part in path.stem.removeprefix("v").split("."))


def main() -> int:
    """Checks against the newest release, or saves one; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", metavar="VERSION", help="write the descriptors of this release, e.g. v0.2.0")
    version = parser.parse_args().save
    descriptors = compile_set()
    if version is not None:
        RELEASED.mkdir(exist_ok=True)
        (RELEASED / f"{version}.binpb").write_bytes(descriptors.SerializeToString(deterministic=True))
        print(f"saved {version}")
        return 0
    last = max(RELEASED.glob("v*.binpb"), key=version_key)
    broken = breaks(facts(FileDescriptorSet.FromString(last.read_bytes())), facts(descriptors))
    if broken:
        print(f"protos/ breaks with {last.relative_to(ROOT)}:", *broken, sep="\n  ")
        return 1
    print(f"protos/ keeps all of {last.stem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
