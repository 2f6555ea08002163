"""SGLang's server arguments: what Tandem sets, sane values for a CPU, and what the user passes through."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, Role

OURS: Final = frozenset(
    {
        "config",
        "device",
        "disaggregation_bootstrap_port",
        "disaggregation_decode_allocation_policy",
        "disaggregation_mode",
        "disaggregation_transfer_backend",
        "dp_size",
        "enable_pd_role_switch",
        "incremental_streaming_output",
        "nnodes",
        "pp_size",
        "skip_tokenizer_init",
        "tp_size",
        "tokenizer_worker_num",
    }
)
"""Arguments that the way requests and KV travel depends on; nobody else sets them."""

TRUTHS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
CPU_RUNNING: Final = 16
"""Sequences that a CPU runs at once by default."""
MOST_WITH_EXTRA_SLOTS: Final = 32
"""Decode of so many sequences has twice as many slots for those whose KV is on its way, as by SGLang's own default."""
CONTEXTS_IN_POOL: Final = 8
"""A CPU's KV pool holds this many full contexts, if memory allows."""
MEMORY_SHARE: Final = 0.1
"""Most of the free memory that a CPU's KV pool takes by default."""


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """What a worker says about its engine; None and 0 leave the choice to us."""

    model_path: str
    """Path of a checkpoint, or its Hugging Face id."""
    served_name: str = ""
    """Name that clients use; empty = the last part of model_path."""
    device: str = "auto"
    """auto, cpu or cuda; auto is what `environment.has_gpu` says."""
    tp_size: int = 1
    dtype: str = "auto"
    page_size: int | None = None
    context_tokens: int | None = None
    chunked_prefill_tokens: int | None = None
    max_running: int | None = None
    max_total_tokens: int | None = None
    keep_prefixes: bool = False
    """Decode keeps the KV of sequences that have ended, and gets the rest of prompts only."""
    role_switch: bool = False
    """The engine may become a prefill engine if it is one of decode, and the other way round, while it runs."""
    threads_per_rank: int = 0
    """CPU threads of each rank; 0 = half of the cores that this process may use, shared among the ranks."""
    kv_events: bool = True
    """Whether SGLang says what its prefix cache holds."""
    log_level: str = "warning"
    engine_args: tuple[str, ...] = ()
    """Any other server argument of SGLang, "key=value" each."""
    start_timeout_ms: int = 1_800_000

    @property
    def name(self) -> str:
        """Name that clients use."""
        return self.served_name or Path(self.model_path).name


def server_args(
    options: SglangOptions, role: Role, cpu: bool, extra: Mapping[str, Any], memory_bytes: int
) -> dict[str, Any]:
    """Keyword arguments of sglang.Engine. `extra` are the user's parsed pass-through arguments, and win."""
    args: dict[str, Any] = {
        "model_path": options.model_path,
        "served_model_name": options.name,
        "tp_size": options.tp_size,
        "dtype": options.dtype,
        "device": "cpu" if cpu else "cuda",
        "log_level": options.log_level,
        "context_length": options.context_tokens,
        "page_size": options.page_size,
        "chunked_prefill_size": options.chunked_prefill_tokens,
        "max_running_requests": options.max_running,
        "max_total_tokens": options.max_total_tokens,
        "host": "127.0.0.1",
    }
    args = {name: value for name, value in args.items() if value is not None}
    switches = _switches(options, role)
    if switches or (options.keep_prefixes and role is Role.DECODE):
        # One that may come to be prefill needs its prefix cache, which is made once.
        args["disaggregation_decode_enable_radix_cache"] = True
    if switches and (most := options.max_running or (CPU_RUNNING if cpu else 0)):
        # SGLang reckons decode's own default only where it starts as decode.
        args["disaggregation_decode_extra_slots"] = 2 * most if most <= MOST_WITH_EXTRA_SLOTS else 0
    if options.kv_events:
        args["kv_events_config"] = json.dumps({"publisher": "tandem"})
    if cpu:
        args = {**cpu_defaults(options, role, memory_bytes), **args}
    ours: dict[str, Any] = {"disaggregation_mode": "null", "incremental_streaming_output": True}
    if role in PAIR:
        ours |= {
            "disaggregation_mode": role.value,
            "disaggregation_transfer_backend": "tandem",
            "enable_pd_role_switch": switches,
        }
    return {**args, **extra, **ours}


def cpu_defaults(options: SglangOptions, role: Role, memory_bytes: int) -> dict[str, Any]:
    """What SGLang does not choose well on a CPU."""
    defaults: dict[str, Any] = {
        "max_running_requests": CPU_RUNNING,
        # An idle scheduler burns a core otherwise.
        "sleep_on_idle": True,
    }
    if tokens := pool_tokens(options, memory_bytes):
        defaults["max_total_tokens"] = tokens
    switches = _switches(options, role)
    if role is not Role.DECODE or switches:
        # SGLang's overlap scheduler wants CUDA events in prefill.
        defaults["disable_overlap_schedule"] = True
    if role is Role.DECODE or switches:
        # The default keeps retracted KV in pinned memory, which needs CUDA.
        defaults["disaggregation_decode_retraction_backup"] = "cpu_tensor"
    return defaults


def _switches(options: SglangOptions, role: Role) -> bool:
    """Whether the engine may take another role."""
    return options.role_switch and role in PAIR


def pool_tokens(options: SglangOptions, memory_bytes: int) -> int | None:
    """Tokens that the KV pool should hold: SGLang alone would fill most of the memory. None if it can't be told."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(options.model_path)
    config = getattr(config, "text_config", config)
    context = options.context_tokens or int(getattr(config, "max_position_embeddings", 0))
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes: int = 2 * config.num_hidden_layers * heads * head * 4 // options.tp_size
    if not context or not token_bytes:
        return None
    return max(context + 1, min(CONTEXTS_IN_POOL * context, int(memory_bytes * MEMORY_SHARE) // token_bytes))


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads "key=value" pairs with the types and choices of SGLang's own command line.

    Keys are written with - or _. Flags take true or false, lists take commas, mappings take JSON.
    Raises TandemError(INVALID_ARGUMENT) that names the key.
    """
    actions = _actions()
    return dict(_parse_one(pair, actions) for pair in pairs)


def _actions() -> dict[str, argparse.Action]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    actions = {action.dest: action for action in parser._actions}
    spellings = {
        name.lstrip("-").replace("-", "_"): action
        for action in parser._actions
        for name in action.option_strings
        if not (isinstance(action, argparse.BooleanOptionalAction) and name.startswith("--no-"))
    }
    return {**spellings, **actions}


def _parse_one(pair: str, actions: Mapping[str, argparse.Action]) -> tuple[str, Any]:
    written, equals, text = pair.partition("=")
    key = written.strip().lstrip("-").replace("-", "_")
    if not equals or not key:
        raise _bad(f"{pair!r} is not of the form key=value")
    action = actions.get(key)
    if action is None:
        near = difflib.get_close_matches(key, actions, n=3)
        raise _bad(f"SGLang has no server argument {key!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    if action.dest in OURS:
        raise _bad(f"{key!r} is set by Tandem and can't be passed through")
    return action.dest, _value(key, text.strip(), action)


def _value(key: str, text: str, action: argparse.Action) -> Any:
    if action.nargs == 0:
        if text.lower() not in TRUTHS:
            raise _bad(f"{key!r} takes true or false, not {text!r}")
        return TRUTHS[text.lower()] if not isinstance(action.const, bool) else TRUTHS[text.lower()] is action.const
    many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    values = [_convert(key, part.strip(), action) for part in (text.split(",") if many else [text])]
    return values if many else values[0]


def _convert(key: str, text: str, action: argparse.Action) -> Any:
    kind = action.type if callable(action.type) else str
    try:
        value = kind(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError, json.JSONDecodeError) as error:
        raise _bad(f"{key!r} does not take {text!r}: {error}") from error
    if action.choices is not None and value not in action.choices:
        raise _bad(f"{key!r} takes one of {', '.join(map(str, action.choices))}, not {text!r}")
    return value


def _bad(message: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, f"--engine-arg: {message}", field="engine_arg")
