"""The protos are commented throughout, follow buf's STANDARD rules, and may only grow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools.check_protos import breaks, facts
from tools.proto_set import PROTOS, SOURCES, compile_set

PASCAL = re.compile(r"(?:[A-Z][a-z0-9]*)+")
SNAKE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


@pytest.fixture(scope="module")
def files() -> dict[str, FileDescriptorProto]:
    """Our proto files by name, with source locations."""
    return {file.name: file for file in compile_set(comments=True).file}


def things(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Source path and name of everything that needs a comment; the numbers are descriptor.proto's field numbers."""
    for index, message in enumerate(file.message_type):
        yield from message_things((4, index), message.name, message)
    for index, enum in enumerate(file.enum_type):
        yield from enum_things((5, index), enum.name, enum)
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{service.name}.{method.name}"


def message_things(path: tuple[int, ...], name: str, message: DescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """A message, its fields and oneofs, and what is nested in it."""
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_things((*path, 3, index), f"{name}.{nested.name}", nested)
    for index, enum in enumerate(message.enum_type):
        yield from enum_things((*path, 4, index), f"{name}.{enum.name}", enum)
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield (*path, 8, index), f"{name}.{oneof.name}"


def enum_things(path: tuple[int, ...], name: str, enum: EnumDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """An enum and its values."""
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"


def uncommented(file: FileDescriptorProto) -> list[str]:
    """What of a file has no comment above it."""
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    return [f"{file.name}: {name} has no comment" for path, name in things(file) if path not in commented]


def lint(file: FileDescriptorProto) -> Iterator[str]:
    """buf's STANDARD rules as far as descriptors show them."""
    if file.package != "tandem.v1":
        yield f"{file.name}: package {file.package} is not tandem.v1"
    if Path(file.name).parent.as_posix() != file.package.replace(".", "/"):
        yield f"{file.name}: the folder is not the package, so its Python import path would differ"
    if not SNAKE.fullmatch(Path(file.name).stem):
        yield f"{file.name}: the file name is not lower_snake_case"
    for message in file.message_type:
        yield from lint_message(message)
    for enum in file.enum_type:
        yield from lint_enum(enum)
    for service in file.service:
        yield from lint_service(service)


def lint_message(message: DescriptorProto) -> Iterator[str]:
    """Names of messages and fields."""
    if not PASCAL.fullmatch(message.name):
        yield f"{message.name} is not PascalCase"
    yield from (
        f"{message.name}.{field.name} is not snake_case" for field in message.field if not SNAKE.fullmatch(field.name)
    )
    for nested in message.nested_type:
        yield from lint_message(nested)
    for enum in message.enum_type:
        yield from lint_enum(enum)


def lint_enum(enum: EnumDescriptorProto) -> Iterator[str]:
    """Names of enums and values, and the value 0."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    if (enum.value[0].name, enum.value[0].number) != (f"{prefix}UNSPECIFIED", 0):
        yield f"{enum.name} does not begin with {prefix}UNSPECIFIED = 0"
    yield from (
        f"{value.name} does not begin with {prefix}" for value in enum.value if not value.name.startswith(prefix)
    )


def lint_service(service: ServiceDescriptorProto) -> Iterator[str]:
    """Names of services, methods, requests and responses."""
    if not service.name.endswith("Service"):
        yield f"{service.name} does not end with Service"
    for method in service.method:
        for kind, full in (("Request", method.input_type), ("Response", method.output_type)):
            name = full.rpartition(".")[2]
            expected = {f"{method.name}{kind}", f"{service.name.removesuffix('Service')}{method.name}{kind}"}
            if name not in expected:
                yield f"{service.name}.{method.name}: {name} is none of {sorted(expected)}"


def test_everything_has_a_comment(files: dict[str, FileDescriptorProto]) -> None:
    found = [line for file in files.values() for line in uncommented(file)]
    assert not found, "\n" + "\n".join(found)


def test_buf_standard_rules(files: dict[str, FileDescriptorProto]) -> None:
    found = [line for file in files.values() for line in lint(file)]
    assert not found, "\n" + "\n".join(found)


def test_only_workers_share_messages(files: dict[str, FileDescriptorProto]) -> None:
    others = {"DecodeService", "UnifiedService"}
    services = [service for file in files.values() for service in file.service if service.name not in others]
    methods = [method for service in services for method in service.method]
    names = [full.rpartition(".")[2] for method in methods for full in (method.input_type, method.output_type)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_workers_speak_alike(files: dict[str, FileDescriptorProto]) -> None:
    services = {service.name: service for file in files.values() for service in file.service}
    assert list(services["PrefillService"].method) == list(services["DecodeService"].method)
    assert list(services["PrefillService"].method) == list(services["UnifiedService"].method)


def test_every_file_is_compiled() -> None:
    assert {path.relative_to(PROTOS).as_posix() for path in SOURCES} >= {
        "tandem/v1/kv_link.proto",
        "tandem/v1/common.proto",
    }
    assert list((PROTOS / "released").glob("v*.binpb"))


BASE = """syntax = "proto3"; package x.v1;
enum Kind { KIND_UNSPECIFIED = 0; KIND_A = 1; }
message Ask { uint32 a = 1; string b = 2; oneof c { bytes d = 3; } }
message Answer { Kind kind = 1; }
service AskService { rpc Do(Ask) returns (stream Answer); }
"""


def compiled(folder: Path, text: str) -> FileDescriptorSet:
    """Descriptors of one file with this text."""
    path = folder / "x.proto"
    path.write_text(text)
    return compile_set((path,), folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uint32 a = 1;", ""),
        ("uint32 a = 1;", "uint32 a = 9;"),
        ("uint32 a = 1;", "uint64 a = 1;"),
        ("uint32 a = 1;", "repeated uint32 a = 1;"),
        ("uint32 a = 1;", "optional uint32 a = 1;"),
        ("uint32 a = 1;", "uint32 renamed = 1;"),
        ("oneof c { bytes d = 3; }", "bytes d = 3;"),
        ("KIND_A = 1;", ""),
        ("KIND_A = 1;", "KIND_A = 2;"),
        ("stream Answer", "Answer"),
        ("rpc Do(Ask) returns (stream Answer);", ""),
    ],
)
def test_a_breaking_change_is_named(tmp_path: Path, old: str, new: str) -> None:
    before = facts(compiled(tmp_path, BASE))
    after = facts(compiled(tmp_path, BASE.replace(old, new)))
    assert breaks(before, after)
    assert not breaks(before, before)


def test_an_addition_is_free(tmp_path: Path) -> None:
    before = facts(compiled(tmp_path, BASE))
    more = BASE.replace("uint32 a = 1;", "uint32 a = 1; uint32 z = 7;") + "message New { uint32 a = 1; }"
    assert not breaks(before, facts(compiled(tmp_path, more)))


def test_the_comment_rule_finds_a_bare_field(tmp_path: Path) -> None:
    path = tmp_path / "x.proto"
    path.write_text('syntax = "proto3";\npackage x.v1;\n// Commented.\nmessage M {\n  uint32 bare = 1;\n}\n')
    (file,) = compile_set((path,), tmp_path, comments=True).file
    assert uncommented(file) == ["x.proto: M.bare has no comment"]


def test_the_lint_finds_bad_names(tmp_path: Path) -> None:
    path = tmp_path / "x.proto"
    path.write_text(
        'syntax = "proto3"; package x.v1; enum Kind { A = 0; } message m { uint32 Bad = 1; }'
        "service Ask { rpc Do(m) returns (m); }"
    )
    (file,) = compile_set((path,), tmp_path).file
    assert len(list(lint(file))) == 9
