"""What a model is made of, from its config.json in Hugging Face's form. Pure, but for reading the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError

_DTYPE_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names of the number of experts of a layer, by family of models."""
_SHARED: Final = "shared_expert_intermediate_size"
_NOT_MODELLED: Final = {
    "kv_lora_rank": "latent attention",
    "first_k_dense_replace": "layers with and without experts",
    "layers_block_type": "layers of several kinds",
    "mamba_d_state": "state space layers",
    "encoder_layers": "an encoder",
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of equal layers: attention, then a gated feed-forward or several of them to choose from."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of one feed-forward, or of one expert."""
    vocabulary: int
    tied: bool = False
    """Embedding and head are one."""
    experts: int = 1
    """Feed-forwards of a layer."""
    active_experts: int = 1
    """That each token goes through."""
    shared_intermediate: int = 0
    """Of the experts together that every token goes through besides."""
    bytes_per_number: float = 2.0
    """Of embedding, head and KV."""
    bytes_per_weight: float = 2.0
    """Of the layers; less where they are quantized."""

    @property
    def attention_weights(self) -> int:
        """Of one layer: query and output, key and value."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def expert_weights(self) -> int:
        """Of one feed-forward: gate, up, down."""
        return 3 * self.hidden * self.intermediate

    @property
    def layer_weights(self) -> int:
        """Of all layers."""
        fed = self.experts * self.expert_weights + 3 * self.hidden * self.shared_intermediate
        return self.layers * (self.attention_weights + fed + self._gate)

    @property
    def active_weights(self) -> int:
        """Of all layers, those that a token is multiplied with."""
        fed = self.active_experts * self.expert_weights + 3 * self.hidden * self.shared_intermediate
        return self.layers * (self.attention_weights + fed + self._gate)

    @property
    def _gate(self) -> int:
        """What chooses the experts."""
        return self.hidden * self.experts if self.experts > 1 else 0

    @property
    def head_weights(self) -> int:
        """From a state to the logits."""
        return self.hidden * self.vocabulary

    @property
    def weight_bytes(self) -> float:
        """Of the whole model; norms and biases, some thousandths, are left out."""
        ends = self.head_weights * (1 if self.tied else 2)
        return self.layer_weights * self.bytes_per_weight + ends * self.bytes_per_number

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of all layers, over all ranks, where no head is there twice."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_number


def read_shape(model: str) -> ModelShape:
    """Of a checkpoint's folder or its config.json. Raises INVALID_ARGUMENT for what is not there or not modelled."""
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(f"{path} can't be read: {error}. --model is a checkpoint's folder or its config.json") from error
    if not isinstance(config, dict):
        raise _bad(f"{path} is no object")
    return shape_of(config)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Raises INVALID_ARGUMENT, which names the field."""
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    for name, what in _NOT_MODELLED.items():
        if config.get(name):
            raise _bad(
                f"the config has {name}: {what} can't be planned by arithmetic; --calibrated takes measured costs"
            )
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    experts = next((_whole(config, name) for name in _EXPERTS if config.get(name)), 1)
    per_expert = "moe_intermediate_size" if experts > 1 and config.get("moe_intermediate_size") else "intermediate_size"
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if dtype not in _DTYPE_BYTES:
        raise _bad(f"dtype {dtype!r} is not known; there are {', '.join(_DTYPE_BYTES)}")
    return ModelShape(
        layers=_whole(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=_whole(config, "head_dim", hidden // heads),
        intermediate=_whole(config, per_expert),
        vocabulary=_whole(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        active_experts=_whole(config, "num_experts_per_tok") if experts > 1 else 1,
        shared_intermediate=_whole(config, _SHARED, 0) if config.get(_SHARED) else 0,
        bytes_per_number=_DTYPE_BYTES[dtype],
        bytes_per_weight=_weight_bytes(config.get("quantization_config"), _DTYPE_BYTES[dtype]),
    )


def _weight_bytes(quantization: Any, plain: float) -> float:
    if not quantization:
        return plain
    method, bits = str(quantization.get("quant_method")), quantization.get("bits")
    if method == "fp8":
        return 1.0
    if method in ("awq", "gptq") and type(bits) is int and bits > 0:
        return bits / 8
    raise _bad(f"quantization {method!r} is not known; there are fp8, awq and gptq")


def _whole(config: Mapping[str, Any], name: str, otherwise: int | None = None) -> int:
    found = config.get(name)
    if found is None and otherwise is not None:
        return otherwise
    if type(found) is not int or found < 1:
        raise _bad(f"the config's {name} is {found!r}, wanted is a whole number above 0")
    return found


def _bad(text: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, text, field="model")
