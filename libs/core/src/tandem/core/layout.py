"""KV layouts, and whether two of them fit."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Entries that move together; see tandem/v1/common.proto."""

    name: str
    item_bytes: tuple[int, ...]
    """Bytes of one entry in each buffer."""
    entries: int

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry over all buffers."""
        return sum(self.item_bytes)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How a worker lays its KV cache out; see tandem/v1/common.proto."""

    page_size: int
    dtype: str
    layers: int
    memory_order: str
    tp_size: int
    pp_size: int
    pools: tuple[PoolLayout, ...]


def mismatches(ours: KvLayout, theirs: KvLayout) -> list[str]:
    """What keeps two layouts from exchanging KV, as "field: ours / theirs"; empty if they fit."""
    found = [
        f"{name}: {getattr(ours, name)} / {getattr(theirs, name)}"
        for name in ("page_size", "dtype", "layers", "memory_order", "tp_size", "pp_size")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    our_pools = {pool.name: pool.item_bytes for pool in ours.pools}
    their_pools = {pool.name: pool.item_bytes for pool in theirs.pools}
    if list(our_pools) != list(their_pools):
        found.append(f"pools: {list(our_pools)} / {list(their_pools)}")
    found += [
        f"item_bytes of pool {name}: {list(items)} / {list(their_pools[name])}"
        for name, items in our_pools.items()
        if name in their_pools and their_pools[name] != items
    ]
    return found


def require_fit(ours: KvLayout, theirs: KvLayout, our_name: str, their_name: str) -> None:
    """Raises TandemError(LAYOUT_MISMATCH) naming both sides' values if two layouts do not fit."""
    found = mismatches(ours, theirs)
    if found:
        raise TandemError(
            ErrorReason.LAYOUT_MISMATCH,
            f"KV layouts of {our_name} and {their_name} do not fit ({our_name} / {their_name}): " + "; ".join(found),
        )
