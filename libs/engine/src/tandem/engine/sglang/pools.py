"""SGLang's description of its buffers (KVArgs) as pools of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.layout import KvLayout
from tandem.engine.rank.pools import Pool
from tandem.rdma.api import Buffer


def state_names(kv_args: Any) -> tuple[str, ...]:
    """Names of the pools of the state components, "state:<index>:<type>" each, in SGLang's order."""
    return tuple(f"state:{index}:{getattr(kind, 'value', kind)}" for index, kind in enumerate(kv_args.state_types))


def pools_of(kv_args: Any) -> tuple[Pool, ...]:
    """Every pool that moves: "kv", "metadata" (SGLang's aux rows), then one per state component.

    Raises TandemError(NOT_SUPPORTED) for a pool whose buffers hold different numbers of entries.
    """
    states = zip(
        state_names(kv_args),
        kv_args.state_data_ptrs,
        kv_args.state_data_lens,
        kv_args.state_item_lens,
        strict=True,
    )
    return (
        _pool("kv", kv_args.kv_data_ptrs, kv_args.kv_data_lens, kv_args.kv_item_lens),
        _pool("metadata", kv_args.aux_data_ptrs, kv_args.aux_data_lens, kv_args.aux_item_lens),
        *(_pool(name, addresses, sizes, items) for name, addresses, sizes, items in states),
    )


def layout_of(kv_args: Any, pools: tuple[Pool, ...], server_args: Any, model: Any) -> KvLayout:
    """What a peer must share with us to exchange KV. model: SGLang's ModelConfig."""
    kv_dtype = str(kv_args.kv_cache_dtype_str)
    return KvLayout(
        page_size=int(kv_args.page_size),
        # "auto" is the model's own.
        dtype=str(model.dtype).removeprefix("torch.") if kv_dtype == "auto" else kv_dtype,
        layers=int(model.num_hidden_layers),
        memory_order=kv_args.kv_layout or "nhd",
        tp_size=int(server_args.tp_size),
        pp_size=int(server_args.pp_size),
        pools=tuple(pool.layout for pool in pools),
    )


def _pool(name: str, addresses: Sequence[int], sizes: Sequence[int], items: Sequence[int]) -> Pool:
    counts = {int(size) // int(item) for size, item in zip(sizes, items, strict=True)}
    if len(counts) != 1:
        raise TandemError(
            ErrorReason.NOT_SUPPORTED,
            f"the buffers of SGLang's pool {name} hold {sorted(counts)} entries, not one count",
        )
    (entries,) = counts
    return Pool(
        name=name,
        # A buffer may end in a part of an entry, which no index reaches.
        buffers=tuple(Buffer(int(at), int(item) * entries) for at, item in zip(addresses, items, strict=True)),
        item_bytes=tuple(int(item) for item in items),
        entries=entries,
    )
