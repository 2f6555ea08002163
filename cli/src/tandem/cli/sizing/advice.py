"""How to start what was found: the line of `tandem up`, and a file for Compose. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from tandem.cli.sizing.candidates import Candidate, Kind
from tandem.core.ids import Role
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
from tandem.core.policies import PolicyName


@dataclass(frozen=True, slots=True)
class Setup:
    """A candidate, and what it was tried with."""

    candidate: Candidate
    model: str
    """What workers load: a checkpoint's folder, or a Hugging Face id."""
    tp: int
    max_running: int
    chunk_tokens: int
    local: bool = False
    """The model is a folder of this machine, so that containers have to get it."""

    @property
    def engine(self) -> dict[str, str]:
        """Variables of every worker, but for those that `tandem up` has an option for."""
        return {
            "TANDEM_SGLANG_CHUNKED_PREFILL_TOKENS": str(self.chunk_tokens),
            "TANDEM_SGLANG_MAX_RUNNING": str(self.max_running),
        }

    @property
    def gateway(self) -> dict[str, str]:
        """Variables of the gateway: policies, and what a short prompt is, where they are not the defaults."""
        counts, one = self.candidate.arrangement, self.candidate
        there = {Role.PREFILL: counts.prefill, Role.DECODE: counts.decode, Role.UNIFIED: counts.unified}
        found = {
            f"TANDEM_GATEWAY_{role.name}_POLICY": policy.value
            for role, policy in one.policies.items()
            if there[role] and policy is not PolicyName.LEAST_LOAD
        }
        if counts.kind is Kind.MIXED and one.short_tokens != DEFAULT_UNIFIED_MAX_PROMPT_TOKENS:
            found["TANDEM_GATEWAY_UNIFIED_MAX_PROMPT_TOKENS"] = str(one.short_tokens)
        return found


def up_line(setup: Setup) -> str:
    """For one machine with a GPU for every rank of every worker."""
    counts = setup.candidate.arrangement
    words = ["tandem", "up", "--device", "cuda", "--model", setup.model]
    words += ["--tp", str(setup.tp)] if setup.tp > 1 else []
    words += ["--ratio", f"{counts.prefill}:{counts.decode}"]
    words += ["--unified", str(counts.unified)] if counts.unified else []
    words += ["--page-size", str(setup.candidate.page_tokens)]
    for name, value in setup.engine.items():
        words += ["--env", f"{name}={value}"]
    for name, value in setup.gateway.items():
        words += ["--env", f"gateway:{name}={value}"]
    return shlex.join(words)


def compose_line(setup: Setup, file: str) -> str:
    """Starts what `compose_file` says, from the checkout; file: where that is."""
    variables = [f"MODEL_PATH={setup.model}"]
    if setup.local:
        path = PurePath(setup.model)
        # Compose takes a path without a dot before it for the name of a volume.
        parent = path.parent if path.is_absolute() else "./" + "/".join(path.parts[:-1])
        variables = [f"MODELS_DIR={parent}", f"MODEL={path.name}"]
    files = shlex.join(["-f", "docker-compose.yml", "-f", file])
    return f"{shlex.join(variables)} docker compose {files} --profile gpu up -d --build --wait"


def compose_file(setup: Setup) -> str:
    """A service for each worker of a pair of pools, each with GPUs of its own; "" for unified workers, which
    docker-compose.yml has none of on GPUs."""
    if setup.candidate.arrangement.unified:
        return ""
    lines = ["# Written by `tandem plan`. Put it beside docker-compose.yml.", "services:"]
    if setup.gateway:
        lines += ["  gateway:", f"    environment: {json.dumps(setup.gateway)}"]
    for number, (name, base) in enumerate(_services(setup)):
        gpus = [str(gpu) for gpu in range(number * setup.tp, (number + 1) * setup.tp)]
        device = {"driver": "nvidia", "device_ids": gpus, "capabilities": ["gpu"]}
        lines.append(f"  {name}:")
        lines += [f"    extends: {{ file: docker-compose.yml, service: {base} }}"] if name != base else []
        lines.append(f"    environment: {json.dumps(_environment(setup))}")
        devices = f"{{ devices: !override [{json.dumps(device)}] }}"
        lines.append(f"    deploy: {{ resources: {{ reservations: {devices} }} }}")
    return "\n".join([*lines, ""])


def _services(setup: Setup) -> Iterator[tuple[str, str]]:
    """Name of each, and which one of docker-compose.yml it is like."""
    counts = setup.candidate.arrangement
    for base, count in (("prefill-gpu", counts.prefill), ("decode-gpu", counts.decode)):
        yield from ((base if number == 0 else f"{base}-{number}", base) for number in range(count))


def _environment(setup: Setup) -> dict[str, str]:
    sizes = {
        "TANDEM_SGLANG_TP_SIZE": str(setup.tp),
        "TANDEM_SGLANG_PAGE_SIZE": str(setup.candidate.page_tokens),
    }
    return sizes | setup.engine
