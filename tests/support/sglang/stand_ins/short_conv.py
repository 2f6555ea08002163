"""As `sglang.srt.layers.attention.mamba.causal_conv1d`: both functions in plain torch, without an activation.

conv_states [slots, channels, width - 1]: the last inputs of each sequence, oldest first.
"""

from __future__ import annotations

import itertools

import torch


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    query_start_loc: torch.Tensor,
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    conv_states: torch.Tensor,
    activation: None,
) -> torch.Tensor:
    """Prompts end to end in x [channels, tokens]; weight [channels, width]. Updates their states."""
    out, bounds = torch.empty_like(x), query_start_loc.tolist()
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        state = conv_states[int(cache_indices[index])]
        before = state if has_initial_state[index] else torch.zeros_like(state)
        seen = torch.cat([before, x[:, start:end]], dim=1)
        out[:, start:end] = torch.nn.functional.conv1d(seen[None], weight[:, None], bias, groups=len(x))[0]
        state.copy_(seen[:, -state.shape[1] :])
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    conv_state_indices: torch.Tensor,
    activation: None,
) -> torch.Tensor:
    """One token of each sequence, x [sequences, channels]. Updates their states."""
    slots = conv_state_indices.long()
    seen = torch.cat([conv_state[slots], x[:, :, None]], dim=2)
    conv_state[slots] = seen[:, :, 1:]
    out = (seen * weight).sum(dim=2)
    return out if bias is None else out + bias
