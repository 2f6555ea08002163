"""Looks at this machine: files of the kernel, limits, one port, the Docker client. Changes nothing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tandem.cli import settings
from tandem.cli.doctor.facts import Clock, Docker, Facts, Gpus, RdmaPort
from tandem.cli.plan import LOOPBACK
from tandem.core.errors import TandemError
from tandem.rdma.host import why_no_pull
from tandem.rdma.verbs.library import load as load_pyverbs

DOCKER_TIMEOUT_S: Final = 10.0
_TIMEX_BYTES: Final = 512
"""More than struct timex has, whose first field, modes, is 0 here: read only."""
_TIME_ERROR: Final = 5
_ZERO_GID: Final = "0000:0000:0000:0000:0000:0000:0000:0000"


def gather(port: int, root: Path = Path("/")) -> Facts:
    """Everything that doctor looks at. root: where /sys, /proc and /dev are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Facts(
        python=sys.version_info[:3],
        torch=_version("torch"),
        sglang=_version("sglang"),
        sglang_for_cpu=settings.sglang_for_cpu(),
        gpus=Gpus(len(settings.visible_gpus()), _word_after(_text(root / "proc/driver/nvidia/version"), "Module")),
        rdma_ports=rdma_ports(root),
        pyverbs=_why_no_pyverbs(),
        memlock_bytes=None if locked == resource.RLIM_INFINITY else locked,
        cma=why_no_pull(),
        shm_free_bytes=_free_bytes(root / "dev/shm"),
        port=port,
        port_error=_port_error(port),
        clock=Clock(time.get_clock_info("monotonic").resolution, _synchronized()),
        memory_available_bytes=available_bytes(_text(root / "proc/meminfo")),
        cores=settings.available_cores(),
        files_soft=soft,
        files_hard=hard,
        docker=_docker(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _word_after(text: str, mark: str) -> str:
    """`NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...`: the version."""
    words = text.partition(mark)[2].split()
    return words[0] if words else ""


def rdma_ports(root: Path) -> tuple[RdmaPort, ...]:
    """Ports of all RDMA devices, as sysfs below `root` shows them."""
    return tuple(map(_rdma_port, sorted((root / "sys/class/infiniband").glob("*/ports/*"))))


def _rdma_port(folder: Path) -> RdmaPort:
    gids = [_text(path) for path in folder.glob("gids/*")]
    interface = next(filter(None, map(_text, sorted(folder.glob("gid_attrs/ndevs/*")))), "")
    mtu = _text(folder.parents[4] / "class/net" / interface / "mtu") if interface else ""
    return RdmaPort(
        name=f"{folder.parents[1].name}/{folder.name}",
        state=_text(folder / "state").rpartition(" ")[2],
        ethernet=_text(folder / "link_layer") == "Ethernet",
        gids=sum(bool(gid) and gid != _ZERO_GID for gid in gids),
        mtu_bytes=int(mtu) if mtu.isdigit() else None,
    )


def _why_no_pyverbs() -> str:
    try:
        load_pyverbs()
    except TandemError as error:
        return error.message
    return ""


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _port_error(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def available_bytes(meminfo: str) -> int | None:
    """MemAvailable of /proc/meminfo."""
    word = _word_after(meminfo, "MemAvailable:")
    return int(word) * 1024 if word.isdigit() else None


def _synchronized() -> bool | None:
    """What the kernel says of the wall clock; None where it may not be asked."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _docker() -> Docker:
    client = shutil.which("docker")
    if client is None:
        return Docker(client=False, engine="")
    command = [client, "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Docker(client=True, engine="")
    return Docker(client=True, engine=asked.stdout.strip() if asked.returncode == 0 else "")
