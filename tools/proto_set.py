"""Compiles protos/ with grpc_tools: to a descriptor set, or to Python stubs.

protoc and its plugins come from the virtual environment (requirements/dev.txt), so everyone generates the same bytes.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SOURCES = tuple(sorted((PROTOS / "tandem").rglob("*.proto")))
PLUGINS = ("mypy", "mypy_grpc")


def run_protoc(sources: tuple[Path, ...], *options: str, root: Path = PROTOS) -> None:
    """Runs protoc over `sources` below `root`; raises RuntimeError where it fails, after protoc has said why."""
    well_known = files("grpc_tools") / "_proto"
    status = protoc.main(["protoc", f"-I{root}", f"-I{well_known}", *options, *map(str, sources)])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def compile_set(
    sources: tuple[Path, ...] = SOURCES, root: Path = PROTOS, *, comments: bool = False
) -> FileDescriptorSet:
    """The descriptors of `sources`, with their comments if asked for."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "set.binpb"
        options = ["--include_source_info"] if comments else []
        run_protoc(sources, f"--descriptor_set_out={target}", *options, root=root)
        return FileDescriptorSet.FromString(target.read_bytes())


def generate_stubs(target: Path) -> None:
    """Writes the Python stubs and their type stubs below `target`."""
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in PLUGINS]
    outputs = [f"--{name}_out={target}" for name in ("python", "grpc_python")]
    outputs += [f"--{name}_out=quiet:{target}" for name in PLUGINS]
    run_protoc(SOURCES, *plugins, *outputs)
