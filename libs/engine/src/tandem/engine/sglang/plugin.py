"""SGLang's way in: the entry point `tandem` of the group sglang.srt.plugins.

SGLang calls register() in every process that it starts, before it builds anything. It keeps its files as they are and
wraps what is named here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

BACKEND: Final = "tandem"
"""Name of the KV transfer backend, as --disaggregation-transfer-backend takes it."""
UTILS: Final = "sglang.srt.disaggregation.utils"
PREFILL: Final = "sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin"
DECODE: Final = "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin"
TREE: Final = "sglang.srt.mem_cache.unified_radix_cache"
SCHEDULER: Final = "sglang.srt.managers.scheduler.Scheduler"


def register() -> None:
    """Adds the backend `tandem` to SGLang, and the hooks that its rooms need."""
    from sglang.srt.arg_groups.choices import DISAGG_TRANSFER_BACKEND_CHOICES, add_disagg_transfer_backend_choices
    from sglang.srt.disaggregation.utils import TransferBackend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from tandem.engine.sglang import kv_events

    if BACKEND in TransferBackend._value2member_map_:
        return
    # What a rank says of its links and rooms is worth more than SGLang's own level lets through.
    logging.getLogger("tandem").setLevel(logging.INFO)
    if BACKEND not in DISAGG_TRANSFER_BACKEND_CHOICES:
        add_disagg_transfer_backend_choices([BACKEND])
    add_member(TransferBackend, BACKEND.upper(), BACKEND)
    kv_events.register()
    for target, hook, kind in wraps():
        HookRegistry.register(target, hook, HookType[kind])


def wraps() -> list[tuple[str, Callable[..., Any], str]]:
    """What is wrapped in SGLang's scheduler, with what, and how."""
    from tandem.engine.sglang import hooks

    return [
        (f"{UTILS}.get_kv_class", hooks.get_kv_class, "AROUND"),
        (f"{UTILS}.poll_and_all_reduce_attn_cp_tp_group", hooks.poll_senders, "AROUND"),
        (f"{PREFILL}.release_aborted_prefill_waiting_req", hooks.quiet_request, "BEFORE"),
        (f"{PREFILL}._retire_aborted_prefill_result", hooks.quiet_request, "BEFORE"),
        (f"{SCHEDULER}.process_pending_chunked_abort", hooks.quiet_chunked, "BEFORE"),
        (f"{PREFILL}.send_kv_chunk", hooks.after_chunk, "AFTER"),
        (f"{PREFILL}.process_disagg_prefill_inflight_queue", hooks.after_step, "AFTER"),
        (f"{DECODE}.process_decode_queue", hooks.after_step, "AFTER"),
        (f"{SCHEDULER}.on_idle", hooks.nap, "AFTER"),
        (f"{SCHEDULER}.init_disaggregation", hooks.attach_alone, "AFTER"),
        (f"{SCHEDULER}.get_next_batch_to_run", hooks.note_alone, "AFTER"),
        (f"{TREE}.select_tree_core_backend", hooks.choose_tree, "AROUND"),
    ]


def add_member(enum: type[Enum], name: str, value: str) -> None:
    """Adds a member to a closed enum, which SGLang's list of backends is."""
    member = object.__new__(enum)
    member._name_, member._value_ = name, value
    internals: Any = enum
    vars(member)["__objclass__"] = enum
    vars(member)["_sort_order_"] = len(internals._member_names_)
    internals._member_names_.append(name)
    internals._member_map_[name] = member
    internals._value2member_map_[value] = member
