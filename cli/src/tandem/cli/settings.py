"""What the command line takes from the environment, and what this machine offers."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from tandem.rpc.settings import Settings

_CHECKOUT = Path(__file__).resolve().parents[4]
_TINY = Path("models", "tandem-tiny")


class CliSettings(Settings, env_prefix="TANDEM_CLI_"):
    """Environment: TANDEM_CLI_<NAME>."""

    url: str = Field(default="http://127.0.0.1:8000", description="gateway to talk to, where no system runs from here")
    api_key: SecretStr = Field(default=SecretStr(""), description="key to send to the gateway")
    ca_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None, description="PEM file of the authorities to trust over HTTPS; empty: those of this machine"
    )
    state_file: Path = Field(default=Path(".run", "up.json"), description="where `tandem up` says what runs")


def inherited() -> dict[str, str]:
    """This process's environment, which its children inherit."""
    return dict(os.environ)


def default_model() -> str:
    """The model that comes with the source: below the current folder, else in the checkout that runs."""
    return str(_TINY if _TINY.is_dir() or not (_CHECKOUT / _TINY).is_dir() else _CHECKOUT / _TINY)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def sglang_for_cpu() -> bool:
    """Whether SGLang is installed for the CPU, as `make setup` does: its stand-ins for CUDA-only packages are there."""
    return find_spec("tandem_torchvision_shim") is not None


def visible_gpus() -> tuple[str, ...]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    found = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return tuple(map(str, found))


def python() -> str:
    """The interpreter that the services run with: this one."""
    return sys.executable


def bench_peers_folder() -> Path:
    """Where `tandem bench gateway` keeps the environment of its peers: below the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tandem", "gateway-peers")
