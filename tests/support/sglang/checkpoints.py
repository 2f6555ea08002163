"""Tiny checkpoints of models whose layers keep more than keys and values: SGLang hands that over as state components.

Weights are random, and spread so that an answer hangs on the whole of its prompt; a seed makes the same ones each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
LAYERS: Final = 4
KV_HEADS: Final = 2
HEAD_SIZE: Final = 16
HIDDEN: Final = 64
WINDOW_TOKENS: Final = 32
"""A windowed layer sees so many tokens, its own among them."""
CONV_TOKENS: Final = 3
"""A convolution sees so many tokens, its own among them."""
SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 1_024,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 2_048,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def windowed(directory: Path) -> Path:
    """Saves a model whose every other layer sees a window of the last tokens: Laguna without experts."""
    from transformers import LagunaConfig

    config = LagunaConfig(
        **SHAPE,
        head_dim=HEAD_SIZE,
        sliding_window=WINDOW_TOKENS,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        mlp_layer_types=["dense"] * LAYERS,
    )
    return _save(config, directory)


def short_conv(directory: Path) -> Path:
    """Saves a model whose every other layer is a short convolution: LFM2."""
    from transformers import Lfm2Config

    config = Lfm2Config(
        **SHAPE,
        layer_types=["conv", "full_attention"] * (LAYERS // 2),
        block_auto_adjust_ff_dim=False,
        conv_L_cache=CONV_TOKENS,
    )
    return _save(config, directory)


def _save(config: Any, directory: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(20_240_117)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((ROOT / "models" / "tandem-tiny" / name).read_bytes())
    return directory
