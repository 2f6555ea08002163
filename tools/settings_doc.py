"""Writes docs/settings.md from the settings classes of every distribution: `python -m tools.settings_doc`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tandem.rpc.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = ROOT / "docs" / "settings.md"
PATTERNS: Final = (
    "*/*/src/tandem/**/settings.py",
    "cli/src/tandem/**/settings.py",
    "libs/rpc/src/tandem/rpc/credentials.py",
)
SECTIONS: Final = {
    "BOOTSTRAP": "The registry of workers.",
    "GATEWAY": "One gateway: of what several processes of it share out, the whole ([processes.md](processes.md)).",
    "PREFILL": "One prefill worker.",
    "DECODE": "One decode worker: the settings of a prefill worker under another prefix.",
    "UNIFIED": "One unified worker: the same again.",
    "RANK": "Each engine rank of a worker: its links and its data path.",
    "SGLANG": "A worker's SGLang engine; 0 and empty leave the choice to Tandem, or to SGLang.",
    "MOCK": "A worker's mock engine.",
    "TLS": "Certificates of any process, for every gRPC connection between services: all three files, or none. See\n"
    "[access.md](security/access.md).",
    "TRACE": "Traces of any service: what is sampled, kept and exported. See [tracing.md](tracing.md).",
    "PLANNER": "The planner, `tandem planner`. See [planner.md](planner.md).",
    "CLI": "The command `tandem`.",
}
"""What each prefix belongs to, in the order of the document."""
INTRO: Final = """\
# Settings

Each process reads its settings from the environment once, when it starts, and logs them with secrets masked. A value
that is not allowed ends the process with exit code 2 and one line per mistake. Lists are written as JSON, e.g.
`TANDEM_GATEWAY_API_KEYS='["one", "two"]'`.

`tandem up` sets most of what a worker needs from its options; `--env KEY=VALUE` adds a variable to every process,
`--env decode-0:KEY=VALUE` to one.

Written by `python -m tools.settings_doc` from the settings classes; a test keeps it up to date.
"""

MEANINGS: Final = {
    "TANDEM_BOOTSTRAP_MAX_WORKERS": "workers that may be registered",
    "TANDEM_BOOTSTRAP_MAX_WATCHERS": "watchers that may be connected",
    "TANDEM_BOOTSTRAP_STOP_GRACE_MS": "time for running calls at stop",
    "TANDEM_BOOTSTRAP_LOG_FORMAT": "human or json",
    "TANDEM_GATEWAY_DRAIN_TIMEOUT_MS": "time for running requests at stop",
    "TANDEM_GATEWAY_MAX_ATTEMPTS": "attempts of one sequence; each goes on from what the client has seen",
    "TANDEM_GATEWAY_RETRY_BACKOFF_MS": "wait before the next attempt, times the number of the last one",
    "TANDEM_GATEWAY_RETRY_AFTER_S": "Retry-After of answers 429 and 503",
    "TANDEM_GATEWAY_MAX_BODY_BYTES": "longest request body",
    "TANDEM_GATEWAY_MAX_N": "most answers per prompt (`n`)",
    "TANDEM_GATEWAY_MAX_BATCH": "most prompts in one request",
    "TANDEM_GATEWAY_TOKENIZER_THREADS": "threads that tokenize",
    "TANDEM_GATEWAY_LOG_LEVEL": "least level to log",
    "TANDEM_GATEWAY_LOG_FORMAT": "human or json",
}
"""What a setting means whose class does not say it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row."""

    variable: str
    default: str
    allowed: str
    meaning: str


def classes() -> list[type[Settings]]:
    """Every settings class with a prefix of its own, in the order of the document."""
    found: dict[str, type[Settings]] = {}
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = ".".join(path.relative_to(path.parents[path.parts[::-1].index("tandem")]).with_suffix("").parts)
            module = importlib.import_module(name)
            for item in vars(module).values():
                if isinstance(item, type) and issubclass(item, Settings) and item.__module__ == name and prefix(item):
                    found[prefix(item)] = item
    return sorted(found.values(), key=lambda item: (_place(prefix(item)), prefix(item)))


def prefix(settings: type[Settings]) -> str:
    """`GATEWAY` of TANDEM_GATEWAY_; empty for a base class."""
    return str(settings.model_config.get("env_prefix", "")).removeprefix("TANDEM_").rstrip("_")


def _place(name: str) -> int:
    return list(SECTIONS).index(name) if name in SECTIONS else len(SECTIONS)


def rows(settings: type[Settings]) -> Iterator[Setting]:
    """The settings of a class."""
    for name, info in settings.model_fields.items():
        variable = settings.env_name(name)
        yield Setting(variable, _default(info), _allowed(info), info.description or MEANINGS.get(variable, ""))


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ((), "") or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _allowed(info: FieldInfo) -> str:
    kinds = [kind for kind in _kinds(info.annotation) if kind is not type(None)]
    if kinds and isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return ", ".join(f"`{member.value}`" for member in kinds[0])
    if bool in kinds:
        return "`true`, `false`"
    low: object = ""
    high: object = ""
    more: list[str] = []
    for item in info.metadata:
        match item:
            case Ge(ge=bound):
                low = bound
            case Gt(gt=bound):
                low = f"> {bound}, "
            case Le(le=bound):
                high = bound
            case Lt(lt=bound):
                high = f"< {bound}"
            case MinLen() | MaxLen():
                pass
            case MultipleOf(multiple_of=step):
                more.append(f"multiple of {step}")
            case _ if pattern := getattr(item, "pattern", None):
                more.append(", ".join(f"`{word}`" for word in str(pattern).strip("^$").strip("()").split("|")))
    if low != "" or high != "":
        more.insert(0, f"{low}..{high}" if high != "" else f">= {low}")
    return ", ".join(more)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def document() -> str:
    """The whole page."""
    parts = [INTRO]
    for settings in classes():
        about = SECTIONS.get(prefix(settings)) or (settings.__doc__ or "").strip().splitlines()[0]
        parts.append(f"\n## TANDEM_{prefix(settings)}_*\n\n{about}\n\n")
        parts.append("| variable | default | allowed | meaning |\n|---|---|---|---|\n")
        parts += [f"| `{row.variable}` | {row.default} | {row.allowed} | {row.meaning} |\n" for row in rows(settings)]
    return "".join(parts)


def main() -> None:
    """Writes the page. That it is up to date is checked by tests/unit/docs."""
    DOCUMENT.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
