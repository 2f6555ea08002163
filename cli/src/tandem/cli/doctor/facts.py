"""What is known of this machine before anything is judged. Pure: values only; None where it could not be found out."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """One port of an RDMA device."""

    name: str
    """device/port, e.g. mlx5_0/1."""
    state: str
    """As the kernel says it: ACTIVE, DOWN, ..."""
    ethernet: bool
    """RoCE; else InfiniBand."""
    gids: int
    """Addresses that are not zero."""
    mtu_bytes: int | None
    """Of its network interface; None: it has none."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of this machine."""

    visible: int
    driver: str
    """Version of the kernel's driver; empty: none is loaded."""


@dataclass(frozen=True, slots=True)
class Docker:
    """The Docker client and its engine."""

    client: bool
    engine: str
    """Version of the engine; empty: none answers."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Of the kernel."""

    resolution_s: float
    """Of the monotonic clock."""
    synchronized: bool | None
    """Whether somebody keeps the wall clock right."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that doctor looks at."""

    python: tuple[int, int, int]
    torch: str | None
    sglang: str | None
    sglang_for_cpu: bool
    """SGLang is installed for the CPU, so that it finds no GPU."""
    gpus: Gpus
    rdma_ports: tuple[RdmaPort, ...]
    pyverbs: str
    """Why it can't be used; empty if it can."""
    memlock_bytes: int | None
    """The soft limit; None: unlimited."""
    cma: str
    """Why memory of other processes of this user can't be read; empty if it can, as far as one can tell."""
    shm_free_bytes: int | None
    """Of /dev/shm."""
    port: int
    """That `tandem up` would listen on."""
    port_error: str
    """Why it can't be used; empty if it can."""
    clock: Clock
    memory_available_bytes: int | None
    cores: int
    files_soft: int
    """Limit on open files."""
    files_hard: int
    docker: Docker
