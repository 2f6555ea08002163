"""What a scheduler of SGLang counts: its pools, and the requests that wait. Touches its internals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem.engine.port import PoolStatus


def pools_of(scheduler: Any) -> tuple[PoolStatus, PoolStatus]:
    """KV pages and metadata rows. What is under a grant is the agent's to know."""
    rows = scheduler.req_to_metadata_buffer_idx_allocator
    metadata = PoolStatus("metadata", total=rows.size, free=rows.available_size(), evictable=0, granted=0)
    return kv_pool_of(scheduler), metadata


def kv_pool_of(scheduler: Any) -> PoolStatus:
    """KV pages."""
    allocator, tree = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
    if scheduler.tp_worker.is_hybrid_swa:
        total, free, evictable = allocator.size_full, allocator.full_available_size(), tree.full_evictable_size()
    else:
        total, free, evictable = allocator.size, allocator.available_size(), tree.evictable_size()
    page = allocator.page_size
    return PoolStatus("kv", total=total // page, free=free // page, evictable=evictable // page, granted=0)


def state_pools_of(scheduler: Any, names: Sequence[str]) -> tuple[PoolStatus, ...]:
    """Entries of the state components that SGLang counts: window pages and recurrent states."""
    if not names:
        return ()
    stats, page = scheduler.pool_stats_observer.get_pool_stats(), scheduler.token_to_kv_pool_allocator.page_size
    found = []
    for name in names:
        match name.rpartition(":")[2]:
            case "swa":
                sizes = (stats.swa_capacity, stats.swa_available_size, stats.swa_evictable_size)
                total, free, evictable = (size // page for size in sizes)
            case "mamba":
                total = scheduler.req_to_token_pool.mamba_pool.size
                free, evictable = stats.mamba_available_size, stats.mamba_evictable_size
            case _:
                continue
        found.append(PoolStatus(name, total=total, free=free, evictable=evictable, granted=0))
    return tuple(found)


def waiting_rooms(scheduler: Any) -> int:
    """Requests that wait: for the other side, for pages, or for their turn."""
    waiting = len(scheduler.waiting_queue)
    if scheduler.disagg_prefill_bootstrap_queue is not None:
        waiting += len(scheduler.disagg_prefill_bootstrap_queue.queue) + len(scheduler.disagg_prefill_inflight_queue)
    if scheduler.disagg_decode_prealloc_queue is not None:
        transfer = scheduler.disagg_decode_transfer_queue
        waiting += len(scheduler.disagg_decode_prealloc_queue.queue)
        waiting += len(transfer.queue) + transfer.num_pending_deferred_releases()
    return waiting
