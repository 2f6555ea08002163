"""Stand-in for SGLang's kernel package on a CPU; never install it where the real one is.

SGLang 0.5.23 imports nine names from `sgl_kernel` at start when it runs on a CPU, and the package index has only CUDA
builds of that package. One of the nine is called for ordinary text models and has a body here. The other eight are for
speculative decoding and for moving whole caches, which do not work on a CPU without the real kernels: they raise.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

__version__ = "0.0.0+tandem.cpu"

REAL_DISTRIBUTIONS = ("sgl-kernel", "sglang-kernel", "sglang-kernel-cpu")

for _name in REAL_DISTRIBUTIONS:
    if any(True for _ in metadata.distributions(name=_name)):
        raise ImportError(
            f"tandem-sglang-cpu-shim hides the real {_name}: uninstall both, then install the one you want"
        )


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes each request's new cache slots into its row of the request-to-token table.

    req_pool_indices, start and end: int [requests]; req_to_token: int [rows, pool_len], changed in place;
    out_cache_loc: int [sum(end - start)], the slots of all requests, one request after another.
    """
    slots = out_cache_loc.to(req_to_token.dtype)
    done = 0
    for row, first, last in zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=True):
        req_to_token[row, first:last] = slots[done : done + last - first]
        done += last - first


def _missing(name: str) -> Callable[..., NoReturn]:
    """A function that says that `name` is not here."""

    def missing(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name} needs SGLang's own kernels; this is Tandem's stand-in for the CPU"
        )

    return missing


copy_all_layer_kv_cache_cpu = _missing("copy_all_layer_kv_cache_cpu")
rotate_input_ids_cpu = _missing("rotate_input_ids_cpu")
fill_accept_out_cache_loc_cpu = _missing("fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = _missing("fill_bonus_tokens_cpu")
assign_draft_cache_locs_contiguous_cpu = _missing("assign_draft_cache_locs_contiguous_cpu")
assign_extend_cache_locs_cpu = _missing("assign_extend_cache_locs_cpu")
build_tree_kernel_efficient_cpu = _missing("build_tree_kernel_efficient_cpu")
verify_tree_greedy_cpu = _missing("verify_tree_greedy_cpu")
