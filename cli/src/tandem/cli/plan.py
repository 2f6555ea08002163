"""What `tandem up` will start: one plan per process. Pure: options and machine in, names and environments out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tandem.core.errors import ErrorReason, TandemError

MAX_WORKERS: Final = 64
"""Of each role."""
MAX_PROCESSES: Final = 64
"""Of the gateway."""
GPU_MEMORY_SHARE: Final = 0.8
"""Of a GPU's memory, for all the workers on it."""
LOOPBACK: Final = "127.0.0.1"


class Kind(Enum):
    """What a process is. The value is the package of its service, below `tandem`."""

    BOOTSTRAP = "bootstrap"
    PREFILL = "prefill"
    DECODE = "decode"
    UNIFIED = "unified"
    GATEWAY = "gateway"


WORKERS: Final = (Kind.PREFILL, Kind.DECODE, Kind.UNIFIED)
"""In the order in which they are shown."""


class EngineChoice(Enum):
    """Engines that the workers can host."""

    SGLANG = "sglang"
    MOCK = "mock"


class ProviderChoice(Enum):
    """How KV travels."""

    AUTO = "auto"
    CMA = "cma"
    TCP = "tcp"
    VERBS = "verbs"


class DeviceChoice(Enum):
    """What the engine runs on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


_PROVIDERS: Final = {choice: choice.value for choice in ProviderChoice} | {ProviderChoice.AUTO: "cma,tcp"}
"""One machine needs no device to itself, so verbs has to be asked for."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine offers."""

    cores: int
    gpus: tuple[str, ...] = ()
    sglang_for_cpu: bool = False
    """SGLang is installed for the CPU, so that it finds no GPU."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the user asked for."""

    prefill: int = 1
    decode: int = 1
    unified: int = 0
    engine: EngineChoice = EngineChoice.SGLANG
    models: tuple[str, ...] = ("models/tandem-tiny",)
    """Each gets `prefill` and `decode` workers of its own."""
    model_names: tuple[str, ...] = ()
    """Of the first models, in their order; the others are named by the last part of their path."""
    provider: ProviderChoice = ProviderChoice.AUTO
    port: int = 8000
    gateway_processes: int = 1
    page_size: int | None = None
    keep_prefixes: bool = False
    """Decode keeps the KV of sequences that have ended."""
    role_switch: bool = False
    """Workers of SGLang may change between prefill and decode while they run, as those of the mock can in any case."""
    tp: int = 1
    device: DeviceChoice = DeviceChoice.AUTO
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    engine_args: tuple[str, ...] = ()
    """"key=value" each."""
    env: tuple[str, ...] = ()
    """"[process:]KEY=value" each; wins over everything else."""
    drain_ms: int = 30_000

    @property
    def served(self) -> tuple[tuple[str, str], ...]:
        """Name and path of each model. Raises INVALID_ARGUMENT where two have one name."""
        if len(self.model_names) > len(self.models):
            raise _bad(f"there are more --model-name ({len(self.model_names)}) than --model", "model_name")
        given = (*self.model_names, *[""] * (len(self.models) - len(self.model_names)))
        names = [name or path.rstrip("/").rpartition("/")[2] for name, path in zip(given, self.models, strict=True)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _bad(f"two models are named {twice[0]!r}: give each a --model-name, in their order", "model_name")
        return tuple(zip(names, self.models, strict=True))


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process."""

    name: str
    kind: Kind
    env: Mapping[str, str]
    """What to add to the inherited environment; the address of bootstrap is added when it is known."""

    def prefixed(self, setting: str) -> str:
        """Environment variable of a setting of this process's service."""
        return f"TANDEM_{self.kind.name}_{setting.upper()}"


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """Every process of a system, in the order of their start."""

    bootstrap: ProcessPlan
    workers: tuple[ProcessPlan, ...]
    gateway: ProcessPlan
    one_by_one: bool = field(default=False)
    """Workers share a GPU, so that each must have its memory before the next one measures what is left."""

    @property
    def processes(self) -> tuple[ProcessPlan, ...]:
        """All of them."""
        return (self.bootstrap, *self.workers, self.gateway)


def in_role(plan: ProcessPlan, kind: Kind, name: str) -> ProcessPlan:
    """A worker's plan for another role, under another name: on the same devices, with the same settings."""
    own, other = f"TANDEM_{plan.kind.name}_", f"TANDEM_{kind.name}_"
    env = {other + key.removeprefix(own) if key.startswith(own) else key: value for key, value in plan.env.items()}
    return ProcessPlan(name, kind, env | {f"{other}WORKER_ID": name})


def parse_ratio(text: str) -> tuple[int, int]:
    """ "2:3" as (2, 3); "0:0" is no pair at all. Raises INVALID_ARGUMENT."""
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text.strip())
    prefill, decode = (int(match[1]), int(match[2])) if match else (0, 0)
    none = match is not None and prefill == decode == 0
    if not none and not (1 <= prefill <= MAX_WORKERS and 1 <= decode <= MAX_WORKERS):
        raise _bad(
            f"--ratio {text!r} is not prefill:decode, e.g. 1:1 or 2:3; 1..{MAX_WORKERS} workers of each role, or 0:0",
            "ratio",
        )
    return prefill, decode


def make_plan(options: UpOptions, machine: Machine, inherited: Mapping[str, str]) -> SystemPlan:
    """Lays a system out. `inherited`: what the user has set already, which is kept where it is theirs to set.

    Raises INVALID_ARGUMENT for options that can't be met on this machine.
    """
    served = options.served
    counts = {Kind.PREFILL: options.prefill, Kind.DECODE: options.decode, Kind.UNIFIED: options.unified}
    planned = {
        f"{kind.value}-{number}": (kind, served[number // counts[kind]])
        for kind in WORKERS
        for number in range(counts[kind] * len(served))
    }
    names = list(planned)
    if not names:
        raise _bad("--ratio 0:0 needs workers that do both: --unified 1 or more", "unified")
    own = _own_environments(options, ["bootstrap", *names, "gateway"])
    placed = _place(options, machine, len(names))
    share = sum(1 for gpus in placed if gpus == placed[0]) if placed[0] else 0
    threads = _threads(len(names), options, machine, inherited)
    ports = {"TANDEM_BOOTSTRAP_PORT": "0", "TANDEM_BOOTSTRAP_METRICS_ADDRESS": f"{LOOPBACK}:0"}
    bootstrap = ProcessPlan("bootstrap", Kind.BOOTSTRAP, {**ports, **own["bootstrap"]})
    workers = tuple(
        _worker(ProcessPlan(name, planned[name][0], own[name]), planned[name][1], options, gpus, share, threads)
        for name, gpus in zip(names, placed, strict=True)
    )
    gateway = {
        "TANDEM_GATEWAY_HOST": LOOPBACK,
        "TANDEM_GATEWAY_PORT": str(options.port),
        **({"TANDEM_GATEWAY_PROCESSES": str(options.gateway_processes)} if options.gateway_processes > 1 else {}),
        "TANDEM_GATEWAY_ADMIN_ADDRESS": f"{LOOPBACK}:0",
        "TANDEM_GATEWAY_MODEL_PATH": options.models[0],
        **_tokenizers(served),
        "TANDEM_GATEWAY_DRAIN_TIMEOUT_MS": str(options.drain_ms),
        "TANDEM_GATEWAY_TOOL_CALL_PARSER": options.tool_call_parser,
        "TANDEM_GATEWAY_REASONING_PARSER": options.reasoning_parser,
        **own["gateway"],
    }
    return SystemPlan(bootstrap, workers, ProcessPlan("gateway", Kind.GATEWAY, gateway), one_by_one=share > 1)


def _tokenizers(served: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """So that the gateway knows all models before their workers are there; one alone needs no more than its path."""
    return {"TANDEM_GATEWAY_TOKENIZERS": json.dumps(dict(served))} if len(served) > 1 else {}


def _worker(
    plain: ProcessPlan,
    model: tuple[str, str],
    options: UpOptions,
    gpus: tuple[str, ...],
    share: int,
    threads: int | None,
) -> ProcessPlan:
    """plain: with what the user wants in its environment. model: its name and its path."""
    env = {
        plain.prefixed("worker_id"): plain.name,
        plain.prefixed("host"): LOOPBACK,
        plain.prefixed("port"): "0",
        plain.prefixed("metrics_address"): f"{LOOPBACK}:0",
        plain.prefixed("engine"): options.engine.value,
        plain.prefixed("model_path"): model[1],
        plain.prefixed("model_name"): model[0],
        plain.prefixed("drain_timeout_ms"): str(options.drain_ms),
        "TANDEM_RANK_PROVIDERS": _PROVIDERS[options.provider],
    }
    if options.engine is EngineChoice.MOCK:
        env |= _mock_environment(options)
    else:
        env |= _sglang_environment(options, gpus, share, threads)
    if options.role_switch and options.engine is EngineChoice.SGLANG:
        env["TANDEM_SGLANG_ROLE_SWITCH"] = "true"
    if options.keep_prefixes:
        # Only decode goes by it, which any worker may come to be.
        env[f"TANDEM_{options.engine.name}_KEEP_PREFIXES"] = "true"
    return ProcessPlan(plain.name, plain.kind, {**env, **plain.env})


def _mock_environment(options: UpOptions) -> dict[str, str]:
    env = {"TANDEM_MOCK_TP_SIZE": str(options.tp)}
    if options.page_size is not None:
        env["TANDEM_MOCK_PAGE_SIZE"] = str(options.page_size)
    for pair in options.engine_args:
        key, value = _split(pair, "--engine-arg")
        env[f"TANDEM_MOCK_{key.replace('-', '_').upper()}"] = value
    return env


def _sglang_environment(options: UpOptions, gpus: tuple[str, ...], share: int, threads: int | None) -> dict[str, str]:
    args = list(options.engine_args)
    given = {_split(pair, "--engine-arg")[0].replace("-", "_") for pair in args}
    env = {"TANDEM_SGLANG_TP_SIZE": str(options.tp)}
    if gpus:
        env |= {"TANDEM_SGLANG_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        if share > 1 and "mem_fraction_static" not in given:
            args.append(f"mem_fraction_static={GPU_MEMORY_SHARE / share:.3f}")
    else:
        env["TANDEM_SGLANG_DEVICE"] = "cpu"
        if threads is not None:
            env["TANDEM_SGLANG_THREADS_PER_RANK"] = str(threads)
    if options.page_size is not None:
        env["TANDEM_SGLANG_PAGE_SIZE"] = str(options.page_size)
    if options.reasoning_parser and "reasoning_parser" not in given:
        # So that grammars leave the reasoning before an answer free.
        args.append(f"reasoning_parser={options.reasoning_parser}")
    if args:
        env["TANDEM_SGLANG_ENGINE_ARGS"] = json.dumps(args)
    return env


def _place(options: UpOptions, machine: Machine, workers: int) -> list[tuple[str, ...]]:
    """GPUs of each worker, round robin; none on a CPU."""
    on_cpu = options.device is DeviceChoice.CPU
    if options.device is DeviceChoice.AUTO:
        on_cpu = machine.sglang_for_cpu or not machine.gpus
    if options.engine is EngineChoice.MOCK or on_cpu:
        return [()] * workers
    if machine.sglang_for_cpu:
        raise _bad("--device cuda: SGLang is installed for the CPU here; the README says how to have both", "device")
    groups = len(machine.gpus) // options.tp
    if groups == 0:
        raise _bad(
            f"--device cuda --tp {options.tp} needs {options.tp} GPUs, this machine shows {len(machine.gpus)}; "
            f"--device cpu needs none",
            "tp",
        )
    sets = [machine.gpus[group * options.tp : (group + 1) * options.tp] for group in range(groups)]
    return [sets[worker % groups] for worker in range(workers)]


def _threads(workers: int, options: UpOptions, machine: Machine, inherited: Mapping[str, str]) -> int | None:
    """Threads of each CPU rank, so that all ranks together fit the cores; None if the user has chosen."""
    if "OMP_NUM_THREADS" in inherited or "TANDEM_SGLANG_THREADS_PER_RANK" in inherited:
        return None
    return max(1, machine.cores // (workers * options.tp))


def _own_environments(options: UpOptions, names: list[str]) -> dict[str, dict[str, str]]:
    """--env of each process: without a name it is for all."""
    own: dict[str, dict[str, str]] = {name: {} for name in names}
    for pair in options.env:
        key, value = _split(pair, "--env")
        name, colon, variable = key.rpartition(":")
        if colon and name not in own:
            raise _bad(f"--env {pair!r}: there is no process {name!r}; there are {', '.join(names)}", "env")
        for target in [name] if colon else names:
            own[target][variable] = value
    return own


def _split(pair: str, option: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key.strip():
        raise _bad(f"{option} {pair!r} is not of the form key=value", option.strip("-").replace("-", "_"))
    return key.strip(), value


def _bad(message: str, field_name: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, message, field=field_name)
