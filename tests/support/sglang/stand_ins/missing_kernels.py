"""As `sgl_kernel.mamba`: names that SGLang imports for every model with recurrent states; for ours it calls none."""

from __future__ import annotations

import torch


def missing(*args: object, **kwargs: object) -> None:
    """Raises: the kernel is not there."""
    raise NotImplementedError("a kernel of sgl_kernel that has no stand-in")


causal_conv1d_fn_cpu = causal_conv1d_update_cpu = chunk_gated_delta_rule_cpu = missing
operators = torch.library.Library("sgl_kernel", "FRAGMENT")
for name in ("fused_gdn_gating_cpu", "fused_sigmoid_gating_delta_rule_update_cpu"):
    operators.define(f"{name}(Tensor x) -> Tensor")
