"""What SGLang takes from the environment, and how its ranks find their service. Settings module: reads os.environ."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tandem.core.errors import ErrorReason, TandemError

CPU_STAND_IN = "tandem_torchvision_shim"
"""Module of libs/sglang-cpu-shim, which `make setup` adds to SGLang."""
RANK_HUB = "TANDEM_RANK_HUB"
"""Address of the service's rank hub, `unix:...`; set before SGLang starts, read in every rank."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """How the ranks of one engine share this machine's cores."""

    threads_per_rank: int
    tp_size: int


def rank_hub_address() -> str:
    """Where this rank's service listens. Raises TandemError(ENGINE_FAILED) outside a Tandem worker."""
    address = os.environ.get(RANK_HUB, "")
    if not address:
        raise TandemError(
            ErrorReason.ENGINE_FAILED, f"{RANK_HUB} is not set: the backend `tandem` runs only inside a Tandem worker"
        )
    return address


def in_a_worker() -> bool:
    """Whether this process belongs to a Tandem worker."""
    return bool(os.environ.get(RANK_HUB))


def available_cores() -> list[int]:
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def available_memory_bytes() -> int:
    """Memory that is free on this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def has_gpu() -> bool:
    """Whether SGLang would find a GPU: this machine shows an NVIDIA driver, and SGLang is not installed for the CPU.

    PyTorch is not asked: it reads the environment when it is imported, which `prepare` has to set first.
    """
    return Path("/dev/nvidiactl").exists() and not installed_for_cpu()


def installed_for_cpu() -> bool:
    """Whether the stand-ins for CUDA-only packages are installed, with which SGLang runs on a CPU only."""
    return find_spec(CPU_STAND_IN) is not None


def use_cpu() -> None:
    """SGLang decides when it is imported whether it runs on a CPU: this is how it is told."""
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"


def prepare(hub_address: str, model_path: str, cpu: Cpu | None, unneeded_modules: Sequence[str] = ()) -> None:
    """Sets this process's environment for SGLang and its children; call it before SGLang is imported.

    What the user has set already is kept, except where correctness depends on it. `cpu` is None on a GPU.
    """
    os.environ[RANK_HUB] = hub_address
    # Pages of an aborted room stay reserved until our own machine has fenced them, however long that takes.
    os.environ["SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE"] = "1"
    os.environ["SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT"] = str(math.inf)
    os.environ.setdefault("SGLANG_HOST_IP", "127.0.0.1")
    if Path(model_path).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    if cpu is None:
        return
    use_cpu()
    if unneeded_modules:
        os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(unneeded_modules))
    # A few small functions would be compiled at the first request: seconds, and a C++ compiler that may not be there.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu.threads_per_rank))
    if cpu.tp_size > 1:
        # Without it SGLang wants one NUMA node per rank.
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", _bind(available_cores(), cpu))


def _bind(cores: list[int], cpu: Cpu) -> str:
    """Cores of each rank as SGLang reads them, `0-1|2-3`; ranks share cores if there are too few."""
    starts = [rank * cpu.threads_per_rank for rank in range(cpu.tp_size)]
    picks = [[cores[(start + i) % len(cores)] for i in range(cpu.threads_per_rank)] for start in starts]
    return "|".join(",".join(str(core) for core in sorted(set(pick))) for pick in picks)
