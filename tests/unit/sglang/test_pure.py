"""The parts of the adapter that need no SGLang: pools, requests and answers, reasons, the bell."""

from __future__ import annotations

import threading
from enum import StrEnum
from types import SimpleNamespace

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Nonce, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.layout import mismatches
from tandem.core.room.events import Why
from tandem.engine.port import FinishKind, Job, LogprobOptions, Sampling
from tandem.engine.sglang import environment, pools, tags, translate
from tandem.engine.sglang.wake import Wake


class State(StrEnum):
    SWA = "swa"
    MAMBA = "mamba"


def kv_args(**changes):
    """KVArgs of a model with two state components."""
    fields = {
        "kv_data_ptrs": [1000, 9000],
        "kv_data_lens": [640, 640],
        "kv_item_lens": [64, 64],
        "aux_data_ptrs": [20000, 21000, 22000],
        "aux_data_lens": [256, 256, 2048],
        "aux_item_lens": [64, 64, 512],
        "state_types": [State.SWA, State.MAMBA],
        "state_data_ptrs": [[30000, 31000], [40000]],
        "state_data_lens": [[320, 320], [999]],
        "state_item_lens": [[32, 32], [100]],
        "page_size": 4,
        "kv_cache_dtype_str": "auto",
        "kv_layout": None,
    }
    return SimpleNamespace(**{**fields, **changes})


def layout(args, dtype="torch.float32", tp_size=1):
    return pools.layout_of(
        args,
        pools.pools_of(args),
        SimpleNamespace(tp_size=tp_size, pp_size=1),
        SimpleNamespace(dtype=dtype, num_hidden_layers=7),
    )


def test_pools_of_kv_metadata_and_two_state_components():
    found = pools.pools_of(kv_args())
    assert [pool.name for pool in found] == ["kv", "metadata", "state:0:swa", "state:1:mamba"]
    assert [pool.entries for pool in found] == [10, 4, 10, 9]
    assert found[1].item_bytes == (64, 64, 512)
    assert [(buffer.address, buffer.bytes) for buffer in found[2].buffers] == [(30000, 320), (31000, 320)]
    assert pools.state_names(kv_args()) == ("state:0:swa", "state:1:mamba")
    assert found[3].buffers[0].bytes == 900, "the part of an entry at the end belongs to no entry"


def test_pool_with_buffers_of_different_counts_is_refused():
    with pytest.raises(TandemError, match="kv") as error:
        pools.pools_of(kv_args(kv_data_lens=[640, 576]))
    assert error.value.reason is ErrorReason.NOT_SUPPORTED


def test_layout_tells_halves_of_equal_size_apart():
    half, brain = layout(kv_args(), "torch.float16"), layout(kv_args(), "torch.bfloat16")
    assert half.dtype == "float16"
    assert half.layers == 7
    assert mismatches(half, brain) == ["dtype: float16 / bfloat16"]
    assert layout(kv_args(kv_cache_dtype_str="fp8_e5m2")).dtype == "fp8_e5m2"
    assert mismatches(layout(kv_args()), layout(kv_args(), tp_size=2)) == ["tp_size: 1 / 2"]


def job(room: int = 77, **changes) -> Job:
    fields = {
        "request_id": RequestId("r"),
        "room": RoomId(room),
        "nonce": Nonce(bytes(16)),
        "peer": WorkerLife(WorkerId("other"), Incarnation(1)),
        "peer_addresses": {},
        "deadline": 0.0,
        "input_ids": [1, 2, 3],
        "sampling": Sampling(max_new_tokens=5),
    }
    return Job(**{**fields, **changes})


def test_request_ids_are_no_prefix_of_each_other():
    ids = [translate.rid_of(RoomId(room)) for room in (1, 16, 17, 2**63 - 1)]
    assert len({len(rid) for rid in ids}) == 1
    assert len(set(ids)) == 4


def test_every_field_of_sampling_has_a_name_at_sglang():
    assert {*translate.SAMPLING_NAMES, "reasoning_first"} == set(Sampling.__dataclass_fields__)


def test_reasoning_that_a_grammar_leaves_free_is_a_matter_of_the_request():
    for free in (True, False):
        sampling = Sampling(max_new_tokens=5, structural_tag="{}", reasoning_first=free)
        request = translate.request_of(job(sampling=sampling), Role.DECODE)
        assert request.get("require_reasoning", False) == free
        assert request["sampling_params"]["structural_tag"] == "{}"


def test_sampling_leaves_out_what_is_not_set():
    assert translate.sampling_params(Sampling(max_new_tokens=5)) == {
        "max_new_tokens": 5,
        "ignore_eos": False,
        "min_new_tokens": 0,
        "skip_special_tokens": True,
    }
    params = translate.sampling_params(Sampling(max_new_tokens=5, temperature=0.0, stop=("a",), seed=0))
    assert params["temperature"] == 0.0
    assert params["stop"] == ["a"]
    assert params["sampling_seed"] == 0
    assert translate.sampling_params(Sampling(5, logit_bias=((7, -100.0),)))["logit_bias"] == {"7": -100.0}


def test_decode_does_not_score_the_prompt():
    asked = job(logprobs=LogprobOptions(top=2, prompt=True, prompt_start=1))
    assert translate.request_of(asked, Role.PREFILL)["logprob_start_len"] == 1
    assert translate.request_of(asked, Role.UNIFIED)["logprob_start_len"] == 1
    assert translate.request_of(asked, Role.DECODE)["logprob_start_len"] == -1
    assert "return_logprob" not in translate.request_of(job(), Role.DECODE)


def answer(end=None, **meta):
    return {"text": "ab", "output_ids": [5, 6], "meta_info": {"finish_reason": end, "prompt_tokens": 3, **meta}}


def test_only_prefill_is_asked_for_an_early_first_token():
    asked = job(early_first_token=True)
    early = {translate.EARLY_FIRST_TOKEN: True}
    assert translate.request_of(asked, Role.PREFILL)["sampling_params"]["custom_params"] == early
    assert "custom_params" not in translate.request_of(asked, Role.DECODE)["sampling_params"]
    assert "custom_params" not in translate.request_of(job(), Role.PREFILL)["sampling_params"]


def test_decode_answer_becomes_a_delta():
    asked = job(logprobs=LogprobOptions(top=1))
    delta = translate.delta_of(
        asked,
        Role.DECODE,
        answer(
            output_token_logprobs=[(-0.5, 5, None), (-1.0, 6, None)],
            output_top_logprobs=[[(-0.5, 5, None)], None],
        ),
    )
    assert (delta.token_ids, delta.text, delta.finish) == ((5, 6), "ab", None)
    assert [(item.token_id, item.logprob, item.top) for item in delta.logprobs] == [
        (5, -0.5, ((5, -0.5),)),
        (6, -1.0, ()),
    ]


def test_a_unified_worker_says_once_what_sglang_repeats_of_the_prompt():
    asked = job(logprobs=LogprobOptions(prompt=True))
    said = {"output_token_logprobs": [(-0.5, 5, None), (-1.0, 6, None)]}
    said |= {"input_token_logprobs": [(None, 1, None), (-2.0, 2, None)]}
    first = translate.delta_of(asked, Role.UNIFIED, answer(completion_tokens=2, **said))
    later = translate.delta_of(asked, Role.UNIFIED, answer({"type": "length"}, completion_tokens=4, **said))
    assert [(one.token_id, one.logprob) for one in first.prompt_logprobs] == [(1, None), (2, -2.0)]
    assert [one.token_id for one in first.logprobs] == [5, 6]
    assert (later.prompt_logprobs, later.token_ids, later.finish.kind) == ((), (5, 6), FinishKind.LENGTH)


def test_a_room_without_a_peer_is_not_named_to_sglang():
    paired, alone = (translate.request_of(job(), role) for role in (Role.DECODE, Role.UNIFIED))
    assert set(paired) - set(alone) == {"bootstrap_host", "bootstrap_room"}


@pytest.mark.parametrize(
    ("role", "end", "kind"),
    [
        (Role.DECODE, {"type": "length", "length": 5}, FinishKind.LENGTH),
        (Role.DECODE, {"type": "stop", "matched": 9}, FinishKind.STOP),
        (Role.PREFILL, {"type": "length", "length": 0}, FinishKind.HANDED_OVER),
        (Role.PREFILL, {"type": "abort", "message": "x", "status_code": 500}, FinishKind.FAILED),
    ],
)
def test_finish_kinds(role, end, kind):
    assert translate.delta_of(job(), role, answer(end)).finish.kind is kind


def test_matched_stop_is_a_token_or_a_text():
    by_token = translate.delta_of(job(), Role.DECODE, answer({"type": "stop", "matched": 9})).finish
    by_text = translate.delta_of(job(), Role.DECODE, answer({"type": "stop", "matched": "END"})).finish
    assert (by_token.matched_token_id, by_token.matched_text) == (9, "")
    assert (by_text.matched_token_id, by_text.matched_text) == (None, "END")


def test_aborted_answer_repeats_nothing_and_says_why():
    text = "Decode transfer failed ... with exception " + tags.write(Why(ErrorReason.LINK_LOST, "gone"))
    delta = translate.delta_of(job(), Role.DECODE, answer({"type": "abort", "message": text, "status_code": 500}))
    assert (delta.token_ids, delta.text) == ((), "")
    assert delta.finish.why == Why(ErrorReason.LINK_LOST, "gone")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, ErrorReason.CANCELLED),
        (400, ErrorReason.INVALID_ARGUMENT),
        (503, ErrorReason.POOL_EXHAUSTED),
        (500, ErrorReason.ENGINE_FAILED),
    ],
)
def test_reason_of_an_abort_without_a_tag(status, reason):
    assert translate.why_of({"type": "abort", "message": "m", "status_code": status}) == Why(reason, "m")


def test_tag_of_an_unknown_reason_is_not_read():
    assert tags.read("[tandem:NO_SUCH_REASON] x") is None
    assert tags.read("nothing of ours") is None


def test_bell_wakes_a_waiter_and_is_taken_once():
    wake, seen = Wake(), []
    assert not wake.take()
    threading.Thread(target=lambda: (seen.append(1), wake.set())).start()
    assert wake.wait_until(lambda: bool(seen), 5_000)
    wake.set()
    assert wake.take()
    assert not wake.take()
    assert not wake.wait_until(lambda: False, 1)


def test_environment_keeps_what_the_user_set_but_not_what_correctness_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.os, "environ", {"OMP_NUM_THREADS": "7", "SGLANG_HOST_IP": "10.0.0.1"})
    monkeypatch.setattr(environment, "available_cores", lambda: [2, 3, 4])
    environment.prepare("unix:/x", str(tmp_path), environment.Cpu(threads_per_rank=2, tp_size=2))
    found = environment.os.environ
    assert found["OMP_NUM_THREADS"] == "7"
    assert found["SGLANG_HOST_IP"] == "10.0.0.1"
    assert found["SGLANG_CPU_OMP_THREADS_BIND"] == "2,3|2,4"
    assert float(found["SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT"]) == float("inf")
    assert found["HF_HUB_OFFLINE"] == "1"
    assert environment.rank_hub_address() == "unix:/x"
    monkeypatch.setattr(environment.os, "environ", {})
    with pytest.raises(TandemError, match="TANDEM_RANK_HUB"):
        environment.rank_hub_address()
