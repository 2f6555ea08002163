"""What bootstrap checks of a worker before it lets it in.

Every refusal names the field, what was given and what is allowed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Final

from tandem.core.cluster import RankEndpoint, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, RankId, Role
from tandem.core.layout import KvLayout, PoolLayout, require_fit
from tandem.core.version import CURRENT, Protocol, agree

INSTANCE_ID_BYTES: Final = 16
MAX_MODELS: Final = 64
MAX_MODEL_CHARS: Final = 256
MAX_PATH_CHARS: Final = 4096
MAX_PAGE_SIZE: Final = 65536
MAX_LAYERS: Final = 4096
MAX_PARALLEL: Final = 1024
MAX_RANKS: Final = 4096
MAX_POOLS: Final = 64
MAX_BUFFERS: Final = 2 * MAX_LAYERS
MAX_I32: Final = 2**31 - 1
MAX_U32: Final = 2**32 - 1
MAX_GIVEN_INCARNATION: Final = 2**62
"""Greatest incarnation that a worker may bring along: leaves room to issue greater ones."""

_WORKER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]{2,64}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_POOL_NAME: Final = re.compile(r"kv|metadata|state:[A-Za-z0-9._-]{1,64}")
_WORD: Final = re.compile(r"[A-Za-z0-9._+-]{1,64}")


def invalid(field: str, given: object, allowed: str) -> TandemError:
    """INVALID_ARGUMENT that names the field, the value and what is allowed."""
    return TandemError(ErrorReason.INVALID_ARGUMENT, f"{field} is {given!r}, allowed: {allowed}", field=field)


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid(field, value, f"{low}..{high}")


def _check_pattern(field: str, value: str, pattern: re.Pattern[str], allowed: str) -> None:
    if pattern.fullmatch(value) is None:
        raise invalid(field, value, allowed)


def check_worker_id(worker_id: str, field: str = "worker.worker_id") -> None:
    """Raises INVALID_ARGUMENT for a name that no worker can have."""
    _check_pattern(field, worker_id, _WORKER_ID, "1..128 characters of [A-Za-z0-9._-]")


def check_address(field: str, address: str) -> None:
    """Raises INVALID_ARGUMENT unless it is host:port with a port of 1..65535."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match.group(2)) <= 65535:
        raise invalid(field, address, "host:port, port 1..65535")


def check_worker(info: WorkerInfo, instance_id: bytes) -> None:
    """Raises INVALID_ARGUMENT for the first field that is out of its range."""
    check_worker_id(info.worker_id)
    _check_range("worker.incarnation", info.life.incarnation, 0, MAX_GIVEN_INCARNATION)
    if len(instance_id) != INSTANCE_ID_BYTES:
        raise invalid("instance_id", f"{len(instance_id)} bytes", f"{INSTANCE_ID_BYTES} bytes")
    _check_models(info.models)
    check_address("address", info.address)
    _check_layout(info.role, info.layout)
    _check_ranks(info)
    _check_range("context_tokens", info.context_tokens, 1, MAX_I32)
    _check_range("max_running", info.max_running, 1, MAX_I32)
    _check_range("total_pages", info.total_pages, 1, MAX_U32)
    if len(info.tokenizer_path) > MAX_PATH_CHARS or not info.tokenizer_path.isprintable():
        raise invalid("tokenizer_path", info.tokenizer_path, f"at most {MAX_PATH_CHARS} printable characters")


def _check_models(models: tuple[str, ...]) -> None:
    if not 1 <= len(models) <= MAX_MODELS:
        raise invalid("models", f"{len(models)} names", f"1..{MAX_MODELS} names")
    for model in models:
        if not 1 <= len(model) <= MAX_MODEL_CHARS or not model.isprintable():
            raise invalid("models", model, f"names of 1..{MAX_MODEL_CHARS} printable characters")
    _check_unique("models", models)


def _check_unique(field: str, values: Iterable[str]) -> None:
    twice = sorted(value for value, count in Counter(values).items() if count > 1)
    if twice:
        raise invalid(field, ", ".join(twice), "each name once")


def _check_layout(role: Role, layout: KvLayout) -> None:
    _check_range("layout.page_size", layout.page_size, 1, MAX_PAGE_SIZE)
    _check_pattern("layout.dtype", layout.dtype, _WORD, "a name such as bfloat16")
    _check_range("layout.layers", layout.layers, 1, MAX_LAYERS)
    _check_pattern("layout.memory_order", layout.memory_order, _WORD, "a name such as nhd")
    _check_range("layout.tp_size", layout.tp_size, 1, MAX_PARALLEL)
    _check_range("layout.pp_size", layout.pp_size, 1, MAX_PARALLEL)
    low, high = (1, MAX_POOLS) if role in PAIR else (0, 0)
    if not low <= len(layout.pools) <= high:
        raise invalid("layout.pools", f"{len(layout.pools)} pools", f"{low}..{high} pools on a {role.value} worker")
    for pool in layout.pools:
        _check_pool(pool)
    _check_unique("layout.pools.name", (pool.name for pool in layout.pools))


def _check_pool(pool: PoolLayout) -> None:
    _check_pattern("layout.pools.name", pool.name, _POOL_NAME, "kv, metadata or state:<component>")
    _check_range("layout.pools.entries", pool.entries, 1, MAX_U32)
    if not 1 <= len(pool.item_bytes) <= MAX_BUFFERS:
        raise invalid("layout.pools.item_bytes", f"{len(pool.item_bytes)} buffers", f"1..{MAX_BUFFERS} buffers")
    for size in pool.item_bytes:
        _check_range("layout.pools.item_bytes", size, 1, MAX_I32)


def _check_ranks(info: WorkerInfo) -> None:
    if not 1 <= len(info.ranks) <= MAX_RANKS:
        raise invalid("ranks", f"{len(info.ranks)} ranks", f"1..{MAX_RANKS} ranks")
    given = sorted(endpoint.rank for endpoint in info.ranks)
    dp, pp, tp = info.dp_size, info.layout.pp_size, info.layout.tp_size
    if len(given) != dp * pp * tp or given != [RankId(*place) for place in product(range(dp), range(pp), range(tp))]:
        shown = " ".join(str(rank) for rank in given[:8])
        raise invalid("ranks", shown, f"each rank of dp {dp} x pp {pp} x tp {tp} once")
    for endpoint in info.ranks:
        _check_endpoint(info.role, endpoint)


def _check_endpoint(role: Role, endpoint: RankEndpoint) -> None:
    field = "ranks.kv_link_address"
    if role is Role.PREFILL:
        check_address(field, endpoint.kv_link_address)
    elif endpoint.kv_link_address:
        raise invalid(field, endpoint.kv_link_address, f"empty on {role.value} ranks, which never listen")


def check_protocol(protocol: Protocol, who: str) -> None:
    """Raises VERSION_MISMATCH with both versions for another major."""
    agree(CURRENT, protocol, who)


def check_fit(info: WorkerInfo, others: Iterable[WorkerInfo]) -> None:
    """Raises LAYOUT_MISMATCH with both values unless the worker fits every one that it may be paired with.

    Those are the workers of the other role of a pair that serve one of its models.
    """
    if info.role not in PAIR:
        return
    for other in others:
        if (
            other.worker_id != info.worker_id
            and other.role in PAIR
            and other.role is not info.role
            and not set(other.models).isdisjoint(info.models)
        ):
            require_fit(info.layout, other.layout, info.worker_id, other.worker_id)
