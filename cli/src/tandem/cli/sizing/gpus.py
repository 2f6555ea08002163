"""What vendors print of their GPUs. Pure.

All figures are of NVIDIA's datasheets: memory, memory bandwidth, BFLOAT16 of the tensor cores without sparsity, and
what a GPU exchanges with others of its machine, both directions together. Where a sheet prints its arithmetic "with
sparsity" only, half of it is taken, as the sheet's footnote says.

They were held against NVIDIA's own transcript of these sheets, which names each document: TensorRT-LLM,
`auto_parallel/cluster_info.py` at commit 16d2467. It has links in one direction, and of H200 the arithmetic with
sparsity. The sheets themselves were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tandem.core.errors import ErrorReason, TandemError


@dataclass(frozen=True, slots=True)
class GpuSheet:
    """One GPU. Units are the sheets' own: 10^9 bytes, 10^12 operations."""

    name: str
    memory_gb: float
    memory_gbytes_per_s: float
    bf16_tflops: float
    """Dense."""
    peer_gbytes_per_s: float
    """To other GPUs of the machine, both directions together."""


_SHEETS: Final = (
    # nvidia-a100-datasheet-us-nvidia-1758950-r4-web, A100 80GB SXM: 80 GB, 2,039 GB/s, 312 TFLOPS, NVLink 600 GB/s.
    GpuSheet("A100-80", 80, 2039, 312, 600),
    # nvidia-tensor-core-gpu-datasheet, H100 SXM: 80 GB, 3.35 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s.
    GpuSheet("H100", 80, 3350, 989.5, 900),
    # hpc-datasheet-sc23-h200-datasheet-3002446, H200 SXM: 141 GB, 4.8 TB/s, 1,979 TFLOPS with sparsity, NVLink
    # 900 GB/s.
    GpuSheet("H200", 141, 4800, 989.5, 900),
    # l40s-datasheet-28413: 48 GB, 864 GB/s, 362.05 TFLOPS (733 with sparsity), PCIe Gen4 x16 64 GB/s.
    GpuSheet("L40S", 48, 864, 362.05, 64),
    # l4-datasheet-2595652: 24 GB, 300 GB/s, 242 TFLOPS with sparsity (the transcript has 120 without), PCIe Gen4 x16
    # 64 GB/s.
    GpuSheet("L4", 24, 300, 121, 64),
)
GPUS: Final = {sheet.name: sheet for sheet in _SHEETS}


def gpu_named(name: str) -> GpuSheet:
    """Upper and lower case are one. Raises INVALID_ARGUMENT, which names those that there are."""
    found = {known.lower(): sheet for known, sheet in GPUS.items()}.get(name.lower())
    if found is None:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"--gpu {name!r} is not known; there are {', '.join(GPUS)}. `tandem calibrate` measures any other",
            field="gpu",
        )
    return found
