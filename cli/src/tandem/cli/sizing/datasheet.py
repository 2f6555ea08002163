"""What an engine costs by its GPU's datasheet and its model's shape: a roofline, and nothing that was measured. Pure.

A prompt costs its arithmetic, and no batch less than reading the weights once. A step of decode costs reading the
weights and all KV, and no less than its arithmetic. Tensor parallel ranks share both, and exchange results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tandem.cli.sim_serve.costs import EngineCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sizing.gpus import GpuSheet
from tandem.cli.sizing.models import ModelShape
from tandem.core.errors import ErrorReason, TandemError

ARITHMETIC_SHARE: Final = 0.5
"""Of the sheet's operations per second, what prompts get: large multiplications reach 60 to 80 % of it under a limit on
power, and between them norms, activations and launches take their time."""
BANDWIDTH_SHARE: Final = 0.75
"""Of the sheet's memory bandwidth: a plain copy reaches about 90 %, and steps of decode read in many short kernels."""
MEMORY_SHARE: Final = 0.85
"""Of a GPU's memory, for weights and KV: activations, CUDA graphs and the context take the rest. SGLang's own default
is between 0.8 and 0.9."""
PEER_SHARE: Final = 0.7
"""Of what the sheet says for GPUs of one machine, what an all-reduce of large messages gets."""
ALL_REDUCE_US: Final = 10.0
"""Of a small all-reduce, whatever is in it: its launch, and waiting for the slowest rank."""
STEP_US: Final = 1_000.0
"""Of a step of decode besides reading: its launch, sampling, and choosing what comes next."""
LINK_SHARE: Final = 0.9
"""Of a link's rate, what is left beside its headers."""
RANGE_NS: Final = 50.0
"""Of one range that is written to a peer: a card takes some 20 million of them a second."""
CHUNK_US: Final = 100.0
"""Until both sides know that a chunk has landed: the simulator's default."""
MARK: Final = "datasheet arithmetic, not measured"
MAX_TP: Final = 64


@dataclass(frozen=True, slots=True)
class Worker:
    """What one worker is made of, and its limits."""

    gpu: GpuSheet
    model: ModelShape
    tp: int = 1
    """GPUs, each with its part of every layer."""
    link_gbytes_per_s: float = 25.0
    """Between workers, each way: 25 is one port of 200 Gbit/s."""
    max_running: int = 256
    chunk_tokens: int = 8192

    @property
    def kv_bytes_per_token(self) -> float:
        """On each GPU. A key-value head is not cut: with fewer heads than GPUs some are there twice."""
        heads = -(-self.model.kv_heads // self.tp)
        return self.model.kv_bytes_per_token / self.model.kv_heads * heads

    @property
    def even(self) -> bool:
        """Whether each GPU gets as many heads as every other."""
        kv_heads = self.model.kv_heads
        return self.model.heads % self.tp == 0 and (kv_heads % self.tp == 0 or self.tp % kv_heads == 0)

    @property
    def weight_bytes(self) -> float:
        """On each GPU."""
        return self.model.weight_bytes / self.tp

    @property
    def kv_tokens(self) -> int:
        """That there is room for beside the weights; 0 or less: none."""
        free = self.gpu.memory_gb * 1e9 * MEMORY_SHARE - self.weight_bytes
        return int(free // self.kv_bytes_per_token)


def costs_of(worker: Worker, least_tokens: int = 1) -> CostModel:
    """For the simulator. least_tokens: KV that a worker has to have room for, those of the longest request.

    Raises INVALID_ARGUMENT if the heads can't be shared out, or the model does not fit.
    """
    _check(worker, least_tokens)
    gpu, model, tp = worker.gpu, worker.model, worker.tp
    flops = gpu.bf16_tflops * 1e12 * ARITHMETIC_SHARE * tp
    bandwidth = gpu.memory_gbytes_per_s * 1e9 * BANDWIDTH_SHARE
    token_us = 2 * model.active_weights / flops * 1e6
    head_us = 2 * model.head_weights / flops * 1e6
    exchanges, exchange_us = _exchanges(worker)
    # Of the embedding a step reads a row for each sequence only.
    embedding = 0 if model.tied else model.head_weights * model.bytes_per_number / tp
    read_us = (worker.weight_bytes - embedding) / bandwidth * 1e6
    engine = EngineCosts(
        prefill_us_per_batch=exchanges * ALL_REDUCE_US,
        prefill_us_per_token=token_us + exchange_us,
        prefill_ns_per_pair=4 * model.layers * model.heads * model.head_dim / flops * 1e9,
        step_us=read_us + STEP_US + exchanges * ALL_REDUCE_US,
        step_us_per_sequence=exchange_us,
        step_ns_per_token=worker.kv_bytes_per_token / bandwidth * 1e9,
        prefill_us_least=read_us,
        step_us_least_per_sequence=token_us + head_us,
    )
    link = LinkCosts(worker.link_gbytes_per_s * LINK_SHARE, CHUNK_US, 2 * model.layers * RANGE_NS)
    shape = WorkerShape(
        kv_tokens=worker.kv_tokens,
        max_running=worker.max_running,
        chunk_tokens=worker.chunk_tokens,
        kv_bytes_per_token=round(worker.kv_bytes_per_token * tp),
    )
    return CostModel(engine, link, shape, f"{gpu.name}, tp {tp}: {MARK}")


def _exchanges(worker: Worker) -> tuple[int, float]:
    """All-reduces of one pass, and what each token adds to all of them in us: a ring sends, and receives,
    2 (tp - 1) / tp of what is summed, at half of the rate that counts both directions."""
    if worker.tp == 1:
        return 0, 0.0
    count = 2 * worker.model.layers
    token_bytes = worker.model.hidden * 2 * 2 * (worker.tp - 1) / worker.tp
    return count, count * token_bytes / (worker.gpu.peer_gbytes_per_s / 2 * 1e9 * PEER_SHARE) * 1e6


def _check(worker: Worker, least_tokens: int) -> None:
    if not worker.even:
        heads = f"{worker.model.heads} heads and {worker.model.kv_heads} of keys and values"
        raise _bad(f"--tp {worker.tp} does not share {heads} out evenly")
    if worker.kv_tokens >= least_tokens:
        return
    needed = (worker.weight_bytes + least_tokens * worker.kv_bytes_per_token) / MEMORY_SHARE / 1e9
    weights_gb, has = worker.weight_bytes / 1e9, f"{worker.gpu.name} has {worker.gpu.memory_gb:g} GB"
    raise _bad(
        f"the model does not fit: {weights_gb:,.1f} GB of weights and KV of {least_tokens:,} tokens need "
        f"{needed:,.1f} GB on each GPU at --tp {worker.tp}, {has}; {_smallest(worker, least_tokens)}"
    )


def _smallest(worker: Worker, least_tokens: int) -> str:
    for tp in range(worker.tp + 1, min(worker.model.heads, MAX_TP) + 1):
        other = Worker(worker.gpu, worker.model, tp)
        if other.even and other.kv_tokens >= least_tokens:
            return f"the smallest that fits is --tp {tp}"
    return "no --tp fits"


def _bad(text: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, text, field="tp")
