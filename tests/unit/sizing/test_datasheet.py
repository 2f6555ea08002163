"""What models are made of and what engines cost by datasheets, against sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tandem.cli.sim_serve.costs import EngineCosts, WorkerShape
from tandem.cli.sim_serve.jobs import Ask, Job
from tandem.cli.sim_serve.prompts import PromptQueue
from tandem.cli.sizing.datasheet import MARK, Worker, costs_of
from tandem.cli.sizing.gpus import GPUS, gpu_named
from tandem.cli.sizing.models import ModelShape, read_shape, shape_of
from tandem.core.errors import ErrorReason, TandemError

LLAMA_8B: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "intermediate_size": 28672,
}
QWEN_30B_A3B: dict[str, Any] = {
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}


def worker(config: dict[str, Any], gpu: str = "H100", tp: int = 1) -> Worker:
    return Worker(gpu_named(gpu), shape_of(config), tp)


def test_weights_and_kv_are_those_of_the_published_models() -> None:
    """8.03, 70.55 and 30.5 (3.3 at work) thousand million parameters; KV of 128, 320 and 96 KiB a token."""
    small, large, sparse = map(shape_of, (LLAMA_8B, LLAMA_70B, QWEN_30B_A3B))
    assert small.layer_weights == 32 * (4096 * 128 * (32 + 8) * 2 + 3 * 4096 * 14336) == 6_979_321_856
    assert [one.weight_bytes / 2e9 for one in (small, large, sparse)] == pytest.approx([8.03, 70.55, 30.53], rel=1e-3)
    assert sparse.active_weights + 2 * sparse.head_weights == pytest.approx(3.35e9, rel=0.01)
    assert [one.kv_bytes_per_token // 1024 for one in (small, large, sparse)] == [128, 320, 96]


def test_a_quantized_model_has_smaller_layers_and_the_same_ends() -> None:
    plain = shape_of(LLAMA_8B)
    quarter = shape_of(LLAMA_8B | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    half = shape_of(LLAMA_8B | {"quantization_config": {"quant_method": "fp8"}})
    assert plain.weight_bytes - half.weight_bytes == plain.layer_weights
    assert plain.weight_bytes - quarter.weight_bytes == 1.5 * plain.layer_weights
    assert half.kv_bytes_per_token == plain.kv_bytes_per_token


def test_costs_of_one_gpu_are_the_sheets_figures_at_their_shares() -> None:
    found = costs_of(worker(LLAMA_8B))
    assert found.engine.prefill_us_per_token == pytest.approx(2 * 6_979_321_856 / (0.5 * 989.5e6))  # 28.2 us
    assert found.engine.prefill_us_per_token == pytest.approx(28.213, abs=1e-3)
    assert found.engine.prefill_ns_per_pair == pytest.approx(4 * 32 * 4096 / (0.5 * 989.5e3))
    # 16.06 GB less the embedding of 1.05 GB, at 0.75 of 3.35 TB/s; and a millisecond besides.
    assert found.engine.prefill_us_least == pytest.approx(5973.86, abs=0.01)
    assert found.engine.step_us == pytest.approx(6973.86, abs=0.01)
    assert found.engine.step_ns_per_token == pytest.approx(131_072 / 2512.5)
    assert found.engine.prefill_us_per_batch == found.engine.step_us_per_sequence == 0
    assert found.engine.step_us_least_per_sequence == pytest.approx(2 * (6_979_321_856 + 525_336_576) / 494.75e6)
    assert found.shape.kv_tokens == int((80e9 * 0.85 - 16_059_990_016) // 131_072) == 396_270
    assert found.shape.kv_bytes_per_token == 131_072
    assert (found.link.gbytes_per_s, found.link.ns_per_page) == (22.5, 3200)
    assert found.source == f"H100, tp 1: {MARK}"


def test_a_batch_takes_what_its_tokens_take_and_no_less_than_the_weights() -> None:
    engine = EngineCosts(prefill_us_per_batch=5, prefill_us_per_token=10, prefill_us_least=1000)
    queue = PromptQueue(engine, WorkerShape(chunk_tokens=1000))
    for number, tokens in enumerate((20, 980, 50)):
        queue.add(Job(Ask(0.0, ((number, tokens),), 1), tokens))
    assert [queue.next_batch()[0] for _ in range(2)] == pytest.approx([0.010005, 0.001005])
    decoding = EngineCosts(step_us=100, step_us_per_sequence=1, step_us_least_per_sequence=3)
    assert [decoding.steps_s(2, sequences, 0) * 1e6 for sequences in (10, 50, 100)] == pytest.approx([220, 300, 600])


def test_ranks_share_weights_arithmetic_and_kv_and_pay_for_their_exchanges() -> None:
    one, four = (costs_of(worker(LLAMA_8B, tp=tp)) for tp in (1, 4))
    exchange_us = 64 * (4096 * 2 * 2 * 3 / 4) / (450e3 * 0.7)
    assert four.engine.prefill_us_per_token == pytest.approx(one.engine.prefill_us_per_token / 4 + exchange_us)
    assert four.engine.prefill_us_per_batch == 64 * 10
    assert four.engine.step_us == pytest.approx((one.engine.step_us - 1000) / 4 + 1000 + 64 * 10)
    assert four.engine.step_ns_per_token == pytest.approx(one.engine.step_ns_per_token / 4)
    assert four.shape.kv_bytes_per_token == one.shape.kv_bytes_per_token
    assert four.shape.kv_tokens > 4 * one.shape.kv_tokens


def test_a_head_that_several_ranks_need_is_there_several_times() -> None:
    eight = costs_of(worker(QWEN_30B_A3B, tp=8))
    assert eight.shape.kv_bytes_per_token == 2 * costs_of(worker(QWEN_30B_A3B, tp=4)).shape.kv_bytes_per_token


def test_of_experts_all_are_read_and_few_computed() -> None:
    dense = shape_of(QWEN_30B_A3B)
    sparse = costs_of(worker(QWEN_30B_A3B))
    assert sparse.engine.prefill_us_per_token == pytest.approx(2 * dense.active_weights / 494.75e6)
    assert sparse.engine.prefill_us_least == pytest.approx((dense.weight_bytes - 2 * dense.head_weights) / 2512.5e3)


def test_a_model_that_does_not_fit_names_what_it_needs_and_the_smallest_size_that_does() -> None:
    with pytest.raises(TandemError) as refused:
        costs_of(worker(LLAMA_70B))
    assert (refused.value.reason, refused.value.field) == (ErrorReason.INVALID_ARGUMENT, "tp")
    # 141.1 GB at 0.85 of a GPU: 166.0. Half of it needs 83 GB, a quarter 41.5.
    assert "need 166.0 GB on each GPU at --tp 1, H100 has 80 GB" in refused.value.message
    assert "the smallest that fits is --tp 4" in refused.value.message
    costs_of(worker(LLAMA_70B, tp=4))
    with pytest.raises(TandemError, match="no --tp fits"):
        costs_of(Worker(replace(gpu_named("L4"), memory_gb=1), shape_of(LLAMA_70B)))
    with pytest.raises(TandemError, match="KV of 1,000,000 tokens"):
        costs_of(worker(LLAMA_8B), least_tokens=1_000_000)


def test_heads_that_can_not_be_shared_out_are_refused() -> None:
    for tp in (3, 12):
        with pytest.raises(TandemError, match=f"--tp {tp} does not share 32 heads and 8"):
            costs_of(worker(LLAMA_8B, tp=tp))


def test_every_sheet_has_figures_and_is_found_by_its_name() -> None:
    for name, sheet in GPUS.items():
        assert gpu_named(name.lower()) is sheet
        figures = (sheet.memory_gb, sheet.memory_gbytes_per_s, sheet.bf16_tflops, sheet.peer_gbytes_per_s)
        assert min(figures) > 0
    with pytest.raises(TandemError, match="A100-80, H100, H200, L40S, L4"):
        gpu_named("TPU")


def test_the_tiny_models_own_file_is_read() -> None:
    folder = Path(__file__).parents[3] / "models" / "tandem-tiny"
    expected = ModelShape(4, 192, 6, 2, 32, 480, 1024, bytes_per_number=4, bytes_per_weight=4)
    assert read_shape(str(folder)) == read_shape(str(folder / "config.json")) == expected


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"torch_dtype": "int8"}, "dtype 'int8'"),
        ({"quantization_config": {"quant_method": "gguf"}}, "quantization 'gguf'"),
    ],
)
def test_a_config_that_can_not_be_planned_says_why(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B | changed))
    with pytest.raises(TandemError) as refused:
        read_shape(str(tmp_path))
    assert refused.value.field == "model"
    assert says in refused.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match=r"checkpoint's folder or its config\.json"):
        read_shape(str(tmp_path / "nothing"))
