"""A plugin of SGLang, for its own PD on the CPU: without it neither of its backends moves a page there.

SGLang loads it by its entry point, see `peer_venv`. Nothing of how SGLang handles faults is touched.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Called by SGLang in each of its processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.disaggregation.nixl.conn._normalize_kv_mem_kinds", _host_memory, HookType.REPLACE)
    HookRegistry.register(
        "sglang.srt.disaggregation.mooncake.conn.MooncakeKVSender.__init__", _no_pinned_indices, HookType.AFTER
    )


def _host_memory(_: object, expected_len: int) -> list[str]:
    """NIXL would be told that the KV pools are a GPU's memory."""
    return ["DRAM"] * expected_len


def _no_pinned_indices(_: object, sender: Any, *__: object, **___: object) -> None:
    """Mooncake's page indices would be staged in memory that only CUDA can pin."""
    sender.supports_host_tensor_indices = False
