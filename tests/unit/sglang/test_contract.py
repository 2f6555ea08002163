"""What the adapter relies on inside SGLang, held against the installed one: an upgrade that moves any of it fails here.

Nothing is started. What a name is used for is said where it is used: backend.py, hooks.py, launch.py, arguments.py.
"""

from __future__ import annotations

import importlib
import inspect
import re
import time
from importlib.metadata import entry_points, version
from types import SimpleNamespace

import pytest

from tests.support.sglang import installed

installed.require()

from tandem.core.errors import TandemError  # noqa: E402 (SGLang warns when it is loaded)
from tandem.core.ids import PAIR, Role  # noqa: E402
from tandem.engine.port import PoolStatus  # noqa: E402
from tandem.engine.sglang import arguments, backend, hooks, plugin, scheduler_gauges, translate  # noqa: E402

pytestmark = pytest.mark.sglang
SRT = "sglang.srt"


def thing(path: str):
    """A module, class or function of SGLang by its dotted path."""
    module, _, rest = path.partition(":")
    found = importlib.import_module(f"{SRT}.{module}")
    for name in filter(None, rest.split(".")):
        found = inspect.getattr_static(found, name)
    return found


def source(path: str) -> str:
    return inspect.getsource(thing(path))


def test_version_is_the_one_that_this_was_read_in():
    assert version("sglang") == "0.5.23"


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("disaggregation.base.conn:BaseKVManager.__init__", "self args disaggregation_mode server_args is_mla_backend"),
        (
            "disaggregation.base.conn:BaseKVSender.__init__",
            "self mgr bootstrap_addr bootstrap_room req_has_disagg_prefill_dp_rank",
        ),
        ("disaggregation.base.conn:BaseKVSender.init", "self num_kv_indices aux_index"),
        ("disaggregation.base.conn:BaseKVSender.send", "self kv_indices state_indices num_kv_tokens"),
        ("disaggregation.base.conn:BaseKVSender.should_send_kv_chunk", "self num_pages last_chunk"),
        ("disaggregation.base.conn:BaseKVReceiver.__init__", "self mgr bootstrap_addr bootstrap_room"),
        ("disaggregation.base.conn:BaseKVReceiver.init", "self prefill_dp_rank"),
        (
            "disaggregation.base.conn:BaseKVReceiver.send_metadata",
            "self kv_indices aux_index state_indices decode_prefix_len destination",
        ),
        ("disaggregation.base.conn:BaseKVBootstrapServer.__init__", "self host port"),
        ("disaggregation.utils:get_kv_class", "transfer_backend class_type"),
        (
            "disaggregation.utils:poll_and_all_reduce_attn_cp_tp_group",
            "pollers attn_cp_cpu_group attn_tp_cpu_group",
        ),
        ("disaggregation.utils:all_reduce_flags", "flags group op"),
        (
            "disaggregation.prefill:SchedulerDisaggregationPrefillMixin.release_aborted_prefill_waiting_req",
            "self req",
        ),
        ("disaggregation.prefill:SchedulerDisaggregationPrefillMixin._retire_aborted_prefill_result", "self req"),
        ("disaggregation.prefill:SchedulerDisaggregationPrefillMixin.send_kv_chunk", "self req last_chunk end_idx"),
        (
            "managers.scheduler_components.output_streamer:SchedulerOutputStreamer.stream_output",
            "self reqs return_logprob skip_req",
        ),
        ("managers.scheduler:Scheduler.process_pending_chunked_abort", "self"),
        ("managers.scheduler:Scheduler.on_idle", "self"),
        ("managers.scheduler:Scheduler.init_disaggregation", "self"),
        ("managers.tokenizer_manager:TokenizerManager.handle_loop", "self"),
        ("managers.tokenizer_manager:TokenizerManager.abort_request", "self rid abort_all"),
        ("managers.tokenizer_control_mixin:TokenizerControlMixin.pd_role_switch", "self obj request"),
        ("arg_groups.choices:add_disagg_transfer_backend_choices", "iterable"),
        ("arg_groups.model_override_base:model_config_of", "server_args"),
    ],
)
def test_signature(path, parameters):
    assert list(inspect.signature(thing(path)).parameters) == parameters.split()


@pytest.mark.parametrize("target", [target for target, _, _ in plugin.wraps()])
def test_hook_target_exists(target):
    module, _, name = target.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        inner, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(inner), cls)
    assert callable(getattr(owner, name))


USED = re.compile(r"\b(?:disagg_kv_sender|kv_receiver|kv_manager|kv_mgr|sender)\.(\w+)")
ELSEWHERE = {
    # Reached only with features that a backend of this name can't switch on, or behind hasattr().
    "_ensure_prefill_recompute_executor",
    "_prefetch_staging_reqs",
    "deregister_buffer_to_engine",
    "enable_all_cp_ranks_for_transfer",
    "is_dummy_cp_rank",
    "kv_args_class",
    "mark_prefill_complete",
    "poll_pp_consensus",
    "register_buffer_to_engine",
    "set_kv_buffer_tensors",
    "submit_prefill_recompute",
    "transfer_infos",
    "_staging_handler",
    "attn_cp_rank",
    "attn_cp_size",
}


@pytest.mark.parametrize("module", ["disaggregation.prefill", "disaggregation.decode", "disaggregation.utils"])
def test_everything_that_sglang_asks_of_a_backend_is_there(module, manager):
    asked = set(USED.findall(inspect.getsource(thing(module))))
    assert asked, "the pattern finds nothing any more"
    manager.kv_args, manager.prefill_info_table = object(), backend.PrefillPeers()
    given = [manager, backend.TandemKVSender(manager, "x:1", 1), backend.TandemKVReceiver(manager, "x:1", 1)]
    missing = {name for name in asked - ELSEWHERE if not any(hasattr(one, name) for one in given)}
    assert missing == set()


def test_prefill_peer_answers_what_sglang_asks():
    asked = set(re.findall(r"prefill_info\.(\w+)", source("disaggregation.decode:DecodePreallocQueue")))
    assert asked == {"dp_size", "follow_bootstrap_room"}
    assert all(hasattr(backend.PrefillPeers().get("any"), name) for name in asked)


def test_aborts_are_released_after_our_fence_alone():
    environ = source("environ:")
    assert "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE = EnvBool" in environ
    assert "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT = EnvFloat" in environ
    deferral = source("disaggregation.decode:DecodeTransferQueue.resolve_deferred_releases")
    assert "is_abort_release_safe" in deferral
    assert "ReduceOp.MIN" in deferral, "ranks release together"
    failed = source("disaggregation.decode:DecodeTransferQueue.pop_transferred")
    assert "ensure_abort_notified(force_arm=True)" in failed
    assert "ReduceOp.MAX" in failed, "one rank's hold is every rank's"


def test_metadata_of_another_room_never_becomes_tokens():
    commit = source("disaggregation.decode:DecodeTransferQueue._commit_transfer_to_req")
    assert commit.index("actual_room != expected_room") < commit.index("output_ids.append")


def test_last_chunk_is_known_by_its_states():
    send = source("disaggregation.prefill:SchedulerDisaggregationPrefillMixin._send_kv_chunk")
    assert "send_state_indices = state_indices if segment_is_last else None" in send
    assert "state_indices = [" in send


def test_a_page_is_finished_on_the_gpu_when_it_is_given_to_a_send():
    """Else a download could be ahead of the forward pass that computes the page; see backend.py."""
    prefill = "disaggregation.prefill:SchedulerDisaggregationPrefillMixin."
    results = source(prefill + "process_batch_result_disagg_prefill")
    first_send = results.index("self.send_kv_chunk(")
    assert results.index("copy_done.synchronize()") < first_send, "with overlap"
    assert results.index("next_token_ids.tolist()") < first_send, "without, on the one stream that there is then"
    copy = source("managers.scheduler:Scheduler._copy_result_to_cpu")
    assert "self.copy_stream.wait_stream(self.forward_stream)" in copy, "copy_done comes after the forward pass"
    chunk = source(prefill + "process_prefill_chunk")
    delayed, sent = chunk.index("elif self.enable_overlap:"), chunk.index("self.send_kv_chunk(req)")
    assert delayed < sent, "with overlap a chunk is sent with its result"
    early = source(prefill + "maybe_send_cached_prefix_chunk")
    assert early.index("ev.record(self.forward_stream)") < early.index("self.send_kv_chunk(")
    assert "req.disagg_kv_sender._early_send_wait_event = ev" in early
    whole = inspect.getsource(thing("disaggregation.prefill"))
    assert whole.count("_event = ev") == 1, "no other event is left with a sender"


def test_a_reserved_page_may_still_be_written_by_the_step_under_way():
    """What backend.order_uploads is for; if SGLang orders this one day, it can go."""
    loop = source("disaggregation.decode:SchedulerDisaggregationDecodeMixin.event_loop_overlap_disagg_decode")
    assert loop.index("self.process_decode_queue()") < loop.index("self.run_batch(batch)") < loop.rindex("pop_and_proc")
    assert "self.forward_stream" in source("managers.scheduler:Scheduler")


@pytest.mark.parametrize("kind", ["SWA", "MAMBA"])
def test_both_sides_name_the_entries_of_a_state_component(kind):
    prefill = source("disaggregation.prefill:SchedulerDisaggregationPrefillMixin._send_kv_chunk")
    for side in (prefill, source("disaggregation.decode:DecodePreallocQueue")):
        assert f"StateType.{kind}: _{kind.lower()}_payload" in side
    assert thing(f"disaggregation.base.conn:StateType.{kind}").value == kind.lower(), "hooks.py knows it by this name"


def test_state_components_are_counted_by_sglangs_own_numbers():
    from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

    counted = dict.fromkeys(("full_num_used", "full_token_usage", "full_available_size", "full_evictable_size"), 0)
    window = {"swa_capacity": 64, "swa_available_size": 40, "swa_evictable_size": 16}
    stats = PoolStats(**counted, **window, mamba_available_size=5, mamba_evictable_size=2)
    scheduler = SimpleNamespace(
        pool_stats_observer=SimpleNamespace(get_pool_stats=lambda: stats),
        token_to_kv_pool_allocator=SimpleNamespace(page_size=8),
        req_to_token_pool=SimpleNamespace(mamba_pool=SimpleNamespace(size=9)),
    )
    assert scheduler_gauges.state_pools_of(scheduler, ["state:0:swa", "state:1:mamba", "state:2:dsa"]) == (
        PoolStatus("state:0:swa", total=8, free=5, evictable=2, granted=0),
        PoolStatus("state:1:mamba", total=9, free=5, evictable=2, granted=0),
    )
    assert scheduler_gauges.state_pools_of(SimpleNamespace(), []) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, True),
        ({"custom_params": None}, False),
        ({"output_ids": []}, False),
        ({"output_ids": [3]}, False),
        ({"output_ids": [4]}, False),
        ({"output_ids": [5]}, False),
        ({"output_ids": [6]}, False),
        ({"output_ids": [100]}, False),
    ],
)
def test_first_token_is_said_early_unless_it_ends_the_answer(changes, said):
    values = {"custom_params": {translate.EARLY_FIRST_TOKEN: True}, "output_ids": [9], **changes}
    req = SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=values["custom_params"], stop_token_ids={3}),
        output_ids=values["output_ids"],
        eos_token_ids={4},
        tokenizer=SimpleNamespace(eos_token_id=5, additional_stop_token_ids={6}),
        vocab_size=100,
        return_logprob=False,
    )
    streamed = []
    scheduler = SimpleNamespace(
        output_streamer=SimpleNamespace(stream_output=lambda reqs, logprob: streamed.append(reqs))
    )
    hooks.say_first_token(None, scheduler, req, last_chunk=False)
    assert streamed == []
    hooks.say_first_token(None, scheduler, req, last_chunk=True)
    assert streamed == ([[req]] if said else [])


def test_requests_know_when_they_began_to_be_computed_by_the_monotonic_clock():
    text = source("observability.req_time_stats:SchedulerReqTimeStats.set_forward_entry_time")
    assert "ts = ts or time.perf_counter()" in text
    assert "self.forward_entry_time = ts" in text
    assert 'set_time_batch(can_run_list, "set_forward_entry_time")' in source("managers.scheduler")
    assert time.get_clock_info("perf_counter").implementation == time.get_clock_info("monotonic").implementation


def test_the_last_chunk_tells_the_room_when_its_compute_began(monkeypatch):
    began = []

    class Sender:
        handle = SimpleNamespace(began=began.append)

    monkeypatch.setattr(backend, "TandemKVSender", Sender)
    monkeypatch.setattr(hooks, "say_first_token", lambda *_: None)
    req = SimpleNamespace(disagg_kv_sender=Sender(), time_stats=SimpleNamespace(forward_entry_time=7.0))
    hooks.after_chunk(None, None, req, last_chunk=False)
    assert began == []
    hooks.after_chunk(None, None, req, last_chunk=True)
    assert began == [7.0]


def test_requests_have_what_ends_an_answer():
    text = source("managers.schedule_batch:Req._check_token_based_finish")
    for name in ("sampling_params.stop_token_ids", "eos_token_ids", "eos_token_id", "additional_stop_token_ids"):
        assert name in text, name
    assert "self.vocab_size" in source("managers.schedule_batch:Req._check_vocab_boundary_finish")


def test_scheduler_has_what_the_hooks_read():
    text = source("managers.scheduler:Scheduler")
    for name in (
        "_pending_chunked_abort_req",
        "chunked_req",
        "disagg_decode_prealloc_queue",
        "disagg_decode_transfer_queue",
        "disagg_prefill_bootstrap_queue",
        "disagg_prefill_inflight_queue",
        "forward_stream",
        "idle_sleeper",
        "output_streamer",
        "pool_stats_observer",
        "req_to_metadata_buffer_idx_allocator",
        "req_to_token_pool",
        "running_batch",
        "token_to_kv_pool_allocator",
        "tp_size",
        "tree_cache",
        "waiting_queue",
    ):
        assert re.search(rf"self\.{name}\b", text), name
    assert "self.poller = zmq.Poller()" in source("managers.scheduler_components.idle_sleeper:IdleSleeper")


def test_answers_can_be_read_without_its_signal_handlers():
    create = source("managers.tokenizer_manager:TokenizerManager.auto_create_handle_loop")
    assert create.index("if self.event_loop is not None") < create.index("add_signal_handler")
    engine = source("entrypoints.engine:Engine.__init__")
    assert "atexit.register(self.shutdown)" in engine
    assert "self.loop = " in engine
    assert "_scheduler_init_result" in engine


def test_no_listener_of_sglang_starts_with_our_bootstrap_server():
    from sglang.srt.disaggregation.common.conn import CommonKVBootstrapServer, CommonKVManager

    assert not issubclass(backend.TandemKVBootstrapServer, CommonKVBootstrapServer)
    assert not issubclass(backend.TandemKVManager, CommonKVManager)
    assert vars(backend.TandemKVBootstrapServer("127.0.0.1", 8998)) == {}


def test_plugin_is_declared_and_adds_the_backend():
    from sglang.srt.arg_groups.choices import DISAGG_TRANSFER_BACKEND_CHOICES
    from sglang.srt.disaggregation import utils
    from sglang.srt.plugins import load_plugins

    (declared,) = entry_points(group="sglang.srt.plugins", name="tandem")
    assert declared.load() is plugin.register
    load_plugins()
    plugin.register()
    assert "tandem" in DISAGG_TRANSFER_BACKEND_CHOICES
    found = utils.get_kv_class(utils.TransferBackend("tandem"), utils.KVClassType.SENDER)
    assert found is backend.TandemKVSender
    fake = utils.get_kv_class(utils.TransferBackend.FAKE, utils.KVClassType.SENDER)
    assert fake.__name__ == "FakeKVSender"


def test_pass_through_arguments_have_sglangs_types():
    parsed = arguments.parse(
        [
            "chunked-prefill-size=64",
            "--disable_radix_cache=true",
            "mem_fraction_static=0.5",
            "cuda_graph_bs_prefill=1,2",
        ]
    )
    assert parsed == {
        "chunked_prefill_size": 64,
        "disable_radix_cache": True,
        "mem_fraction_static": 0.5,
        "cuda_graph_bs_prefill": [1, 2],
    }


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("chunk_prefill_size=4", "did you mean chunked_prefill_size"),
        ("max-running-requests=x", "'max_running_requests' does not take 'x'"),
        ("dtype=zzz", "float32"),
        ("disable_radix_cache=perhaps", "true or false"),
        ("disaggregation-mode=decode", "set by Tandem"),
        ("novalue", "key=value"),
    ],
)
def test_bad_pass_through_argument_is_named(pair, says):
    with pytest.raises(TandemError, match=re.escape(says)):
        arguments.parse([pair])


def test_what_is_ours_is_an_argument_of_sglang():
    assert set(arguments._actions()) >= arguments.OURS - {"skip_tokenizer_init"}


@pytest.mark.parametrize("role", Role)
def test_decode_keeps_prefixes_where_that_is_wanted(role, tmp_path):
    for keep in (True, False):
        options = arguments.SglangOptions(model_path=str(tmp_path), keep_prefixes=keep)
        args = arguments.server_args(options, role, False, {}, 0)
        wanted = keep and role is Role.DECODE
        assert args.get("disaggregation_decode_enable_radix_cache", False) is wanted


@pytest.mark.parametrize("role", Role)
def test_who_may_change_roles_starts_with_what_either_role_needs(role, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "pool_tokens", lambda options, memory: 4096)
    options = arguments.SglangOptions(model_path=str(tmp_path), role_switch=True)
    args = arguments.server_args(options, role, True, {}, 0)
    paired = role in PAIR
    assert args.get("enable_pd_role_switch", False) is paired
    assert args.get("disaggregation_decode_enable_radix_cache", False) is paired
    assert args.get("disaggregation_decode_extra_slots", 0) == (32 if paired else 0)
    assert args["disable_overlap_schedule"] is True
    assert args.get("disaggregation_decode_retraction_backup") == ("cpu_tensor" if paired else None)
    from sglang.srt.server_args import ServerArgs

    assert ServerArgs(**args).enable_pd_role_switch is paired


@pytest.mark.parametrize(("most", "slots"), [(32, 64), (33, 0), (None, None)])
def test_slots_of_those_whose_kv_comes_are_as_many_as_sglang_gives_decode(most, slots, tmp_path):
    options = arguments.SglangOptions(model_path=str(tmp_path), role_switch=True, max_running=most)
    args = arguments.server_args(options, Role.PREFILL, False, {}, 0)
    assert args.get("disaggregation_decode_extra_slots") == slots


def test_a_change_of_role_calls_what_the_manager_has():
    teardown = source("disaggregation.role_switch:teardown_disaggregation")
    assert teardown.count("km.teardown()") == 2
    assert "km.supports_role_switch" in source("disaggregation.role_switch:_reject_reason")
    assert not inspect.isabstract(backend.TandemKVManager)
    assert backend.TandemKVManager.teardown is not thing("disaggregation.base.conn:BaseKVManager.teardown")
    assert backend.TandemKVManager.supports_role_switch


@pytest.mark.parametrize("role", Role)
def test_cpu_defaults_are_arguments_of_sglang_and_the_user_wins(role, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "pool_tokens", lambda options, memory: 4096)
    options = arguments.SglangOptions(model_path=str(tmp_path), max_running=3)
    args = arguments.server_args(options, role, True, {"max_total_tokens": 99, "sleep_on_idle": False}, 0)
    assert args["max_running_requests"] == 3
    assert args["max_total_tokens"] == 99
    assert args["sleep_on_idle"] is False
    assert args.get("disaggregation_transfer_backend") == ("tandem" if role in PAIR else None)
    from sglang.srt.server_args import ServerArgs

    assert ServerArgs(**args).disaggregation_mode == (role.value if role in PAIR else "null")
