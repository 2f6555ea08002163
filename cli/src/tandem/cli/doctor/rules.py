"""What the facts mean: a finding per thing. Pure; each rule is a function of Facts.

FAILED is what keeps `tandem up` with its default options from working; a WARNING is what keeps something else
from it, or makes it slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tandem.cli.doctor.facts import GIB, MIB, Facts, RdmaPort

SGLANG: Final = "0.5.23"
"""The version that is supported."""
MIN_PYTHON: Final = (3, 11)
MIN_MEMORY_BYTES: Final = 2 * GIB
COMFORTABLE_MEMORY_BYTES: Final = 6 * GIB
MIN_SHM_BYTES: Final = 64 * MIB
MIN_FILES: Final = 256
COMFORTABLE_FILES: Final = 4096
MIN_MEMLOCK_BYTES: Final = GIB
ROCE_MTU_BYTES: Final = 4200
"""An Ethernet frame that holds RoCE's largest packet of 4096 bytes with its headers."""
COARSE_CLOCK_S: Final = 1e-6


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    means: str
    """What was found, and what follows from it."""
    do: str = ""
    """What to do about it; empty if nothing is to be done."""


def examine(facts: Facts) -> list[Finding]:
    """Every rule's finding, in the order in which one would look."""
    return [rule(facts) for rule in RULES]


def python(facts: Facts) -> Finding:
    """The interpreter."""
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < MIN_PYTHON:
        return Finding("python", Level.FAILED, f"{version}; Tandem needs 3.11 or newer", "make setup PYTHON=python3.11")
    return Finding("python", Level.OK, version)


def torch(facts: Facts) -> Finding:
    """PyTorch, which SGLang needs and nothing else."""
    if facts.torch is None:
        means = "not installed: SGLang can't run, the mock engine can"
        return Finding("torch", Level.FAILED, means, "make setup; or tandem up --engine mock")
    return Finding("torch", Level.OK, facts.torch)


def sglang(facts: Facts) -> Finding:
    """The engine, in the one version that is supported."""
    if facts.sglang is None:
        means = "not installed: only the mock engine can run"
        return Finding("sglang", Level.FAILED, means, "make setup; or tandem up --engine mock")
    if facts.sglang != SGLANG:
        means = f"{facts.sglang}; Tandem is made for {SGLANG} and plugs into its internals"
        return Finding("sglang", Level.WARNING, means, f"pip install sglang=={SGLANG}")
    return Finding("sglang", Level.OK, f"{facts.sglang}, for the {'CPU' if facts.sglang_for_cpu else 'GPU'}")


def cuda(facts: Facts) -> Finding:
    """GPUs, and whether they would be used."""
    gpus = facts.gpus
    if not gpus.visible:
        if facts.sglang is not None and not facts.sglang_for_cpu:
            means = "no GPU is visible, and SGLang is installed for GPUs"
            return Finding("cuda", Level.WARNING, means, "make setup installs SGLang for the CPU")
        return Finding("cuda", Level.OK, "no GPU: SGLang runs on the CPU")
    if not gpus.driver:
        means = f"{gpus.visible} GPUs, but the driver of the kernel does not answer"
        return Finding("cuda", Level.WARNING, means, "install NVIDIA's driver, then: nvidia-smi")
    if facts.sglang_for_cpu:
        means = f"{gpus.visible} GPUs that are not used: SGLang is installed for the CPU"
        return Finding("cuda", Level.WARNING, means, "README.md, GPUs: a second environment with SGLang for CUDA")
    return Finding("cuda", Level.OK, f"{gpus.visible} GPUs, driver {gpus.driver}")


def rdma_devices(facts: Facts) -> Finding:
    """Devices that verbs could use."""
    ports = facts.rdma_ports
    if not ports:
        return Finding("rdma devices", Level.OK, "none: KV travels by cma on one host, else by tcp")
    usable = [port for port in ports if not _obstacle(port)]
    listed = "; ".join(f"{port.name}: {_obstacle(port) or _described(port)}" for port in ports)
    if not usable:
        return Finding("rdma devices", Level.WARNING, f"none can be used. {listed}", "ibv_devinfo -v; ip link")
    slow = [port.name for port in usable if port.ethernet and (port.mtu_bytes or 0) < ROCE_MTU_BYTES]
    if slow:
        means = f"{listed}. Packets are smaller than 4096 bytes"
        return Finding("rdma devices", Level.WARNING, means, "ip link set dev <interface> mtu 9000, on the switch too")
    return Finding("rdma devices", Level.OK, listed)


def _obstacle(port: RdmaPort) -> str:
    if port.state != "ACTIVE":
        return f"its port is {port.state or 'in no known state'}"
    return "" if port.gids else "it has no address (GID)"


def _described(port: RdmaPort) -> str:
    kind = "RoCE" if port.ethernet else "InfiniBand"
    return f"{kind}, {port.gids} GIDs" + (f", MTU {port.mtu_bytes}" if port.mtu_bytes else "")


def pyverbs(facts: Facts) -> Finding:
    """The library, where there are devices."""
    if not facts.pyverbs:
        return Finding("pyverbs", Level.OK, "can be loaded")
    if not facts.rdma_ports:
        return Finding("pyverbs", Level.OK, "can't be loaded, and there is no device for it")
    do = "apt install python3-pyverbs ibverbs-providers"
    return Finding("pyverbs", Level.WARNING, f"verbs can't be used: {facts.pyverbs}", do)


def memlock(facts: Facts) -> Finding:
    """Memory that may be locked: verbs registers the KV pool whole."""
    limit = facts.memlock_bytes
    if limit is None:
        return Finding("locked memory", Level.OK, "unlimited")
    shown = f"{limit / MIB:,.0f} MiB"
    if facts.rdma_ports and limit < MIN_MEMLOCK_BYTES:
        means = f"{shown} may be locked; verbs registers the whole KV pool, and is not used where that is larger"
        return Finding("locked memory", Level.WARNING, means, "ulimit -l unlimited; or memlock in limits.conf")
    return Finding("locked memory", Level.OK, f"{shown} may be locked; only verbs needs more")


def cma(facts: Facts) -> Finding:
    """Whether KV can be pulled from one process to another."""
    if facts.cma:
        means = f"{facts.cma}: on one host KV travels by tcp instead, which is slower"
        do = "sysctl kernel.yama.ptrace_scope=1; in containers the same pid namespace and SYS_PTRACE"
        return Finding("cma", Level.WARNING, means, do)
    return Finding("cma", Level.OK, "processes of this user may read each other's memory")


def shared_memory(facts: Facts) -> Finding:
    """/dev/shm, which PyTorch uses between ranks."""
    free = facts.shm_free_bytes
    if free is None:
        means = "there is no /dev/shm: SGLang with several ranks can't run"
        return Finding("/dev/shm", Level.WARNING, means, "mount -t tmpfs tmpfs /dev/shm")
    shown = f"{free / MIB:,.0f} MiB free"
    if free < MIN_SHM_BYTES:
        means = f"{shown}: SGLang with several ranks needs more"
        return Finding("/dev/shm", Level.WARNING, means, "mount -o remount,size=2G /dev/shm; docker run --shm-size 2g")
    return Finding("/dev/shm", Level.OK, shown)


def port(facts: Facts) -> Finding:
    """The gateway's HTTP port."""
    if facts.port_error:
        means = f"{facts.port} can't be used: {facts.port_error}"
        return Finding("port", Level.FAILED, means, f"tandem up --port 0; who has it: ss -ltnp 'sport = :{facts.port}'")
    return Finding("port", Level.OK, f"{facts.port} is free")


def clock(facts: Facts) -> Finding:
    """Time: deadlines need a fine monotonic clock; traces and certificates of several machines an agreed wall clock."""
    if facts.clock.resolution_s > COARSE_CLOCK_S:
        means = f"the monotonic clock has steps of {facts.clock.resolution_s * 1e6:g} us: measured times are coarse"
        return Finding("clock", Level.WARNING, means, "cat /sys/devices/system/clocksource/*/current_clocksource")
    if facts.clock.synchronized is None:
        return Finding("clock", Level.OK, "whether it is kept right can't be found out here")
    if not facts.clock.synchronized:
        means = "nobody keeps it right: traces over several machines and certificates may be off"
        return Finding("clock", Level.WARNING, means, "timedatectl set-ntp true; or apt install chrony")
    return Finding("clock", Level.OK, "synchronized")


def memory(facts: Facts) -> Finding:
    """Free memory, for two engines on this machine."""
    free = facts.memory_available_bytes
    if free is None:
        return Finding("memory", Level.WARNING, "can't be found out", "free -m")
    shown = f"{free / GIB:.1f} GiB available"
    if free < MIN_MEMORY_BYTES:
        means = f"{shown}; two SGLang engines hardly fit, even with the tiny model"
        return Finding("memory", Level.FAILED, means, "end other processes; or tandem up --engine mock")
    if free < COMFORTABLE_MEMORY_BYTES:
        means = f"{shown}: enough for small models"
        return Finding("memory", Level.WARNING, means, "--engine-arg max_total_tokens=N bounds the KV pools")
    return Finding("memory", Level.OK, f"{shown}, {facts.cores} cores")


def files(facts: Facts) -> Finding:
    """Open files: each client, Session, link and lane is one."""
    shown = f"{facts.files_soft:,} may be open (hard limit {facts.files_hard:,})"
    if facts.files_soft < MIN_FILES:
        return Finding("open files", Level.FAILED, f"{shown}: not enough to start", "ulimit -n 4096")
    if facts.files_soft < COMFORTABLE_FILES:
        means = f"{shown}: the gateway takes 1024 sequences, each with a connection"
        return Finding("open files", Level.WARNING, means, "ulimit -n 65536")
    return Finding("open files", Level.OK, shown)


def docker(facts: Facts) -> Finding:
    """Only for docker compose."""
    if facts.docker.engine:
        return Finding("docker", Level.OK, f"engine {facts.docker.engine}")
    if facts.docker.client:
        means = "its engine does not answer: docker compose can't run; nothing else needs it"
        return Finding("docker", Level.WARNING, means, "systemctl start docker; is this user in the group docker?")
    return Finding("docker", Level.OK, "not there; only docker compose needs it")


RULES: Final[tuple[Callable[[Facts], Finding], ...]] = (
    *(python, torch, sglang, cuda),
    *(rdma_devices, pyverbs, memlock, cma),
    *(shared_memory, port, clock, memory, files, docker),
)
