"""What a cluster's engines and links cost, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.core.errors import ErrorReason, TandemError

SCHEMA: Final = "tandem.costs/1"


@dataclass(frozen=True, slots=True)
class CostModel:
    """All that a simulated cluster is made of but its size."""

    engine: EngineCosts = field(default_factory=EngineCosts)
    link: LinkCosts = field(default_factory=LinkCosts)
    shape: WorkerShape = field(default_factory=WorkerShape)
    source: str = "the mock engine's defaults"
    """Where the numbers come from: a calibration, a datasheet, or somebody."""
    gateway: GatewayCosts = field(default_factory=GatewayCosts)


def to_json(model: CostModel) -> str:
    """With every number."""
    return json.dumps({"schema": SCHEMA, **asdict(model)}, indent=2) + "\n"


def read_model(path: Path) -> CostModel:
    """What it leaves out is as by default. Raises INVALID_ARGUMENT, which names the field and what is allowed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad("costs", f"{path} can't be read: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise _bad("schema", f"{path} has no 'schema': {SCHEMA!r}")
    allowed = {"schema", "engine", "link", "shape", "gateway", "source"}
    if strange := sorted(set(document) - allowed):
        raise _bad(strange[0], f"{path} has {', '.join(strange)}; allowed are {', '.join(sorted(allowed))}")
    return CostModel(
        _part(EngineCosts, "engine", document.get("engine", {})),
        _part(LinkCosts, "link", document.get("link", {})),
        _part(WorkerShape, "shape", document.get("shape", {})),
        str(document.get("source", path.name)),
        _part(GatewayCosts, "gateway", document.get("gateway", {})),
    )


Part = TypeVar("Part", EngineCosts, LinkCosts, WorkerShape, GatewayCosts)
_ABOVE_ZERO: Final = ("gbytes_per_s", "kv_tokens", "max_running", "chunk_tokens", "page_tokens")


def _part(kind: type[Part], name: str, given: Any) -> Part:
    known = {one.name: one for one in fields(kind)}
    if not isinstance(given, Mapping) or (strange := sorted(set(given) - set(known))):
        what = f"has {', '.join(strange)}" if isinstance(given, Mapping) else "is no object"
        raise _bad(name, f"'{name}' {what}; its fields are {', '.join(known)}")
    for key, value in given.items():
        if known[key].type == "tuple[float, ...]":
            if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
                raise _bad(f"{name}.{key}", f"{value!r} is not allowed: a list of numbers")
            continue
        whole = known[key].type == "int"
        least = "above 0" if key in _ABOVE_ZERO else "at least 0"
        fits = isinstance(value, int) or (not whole and isinstance(value, float))
        if not fits or isinstance(value, bool) or value < 0 or (value == 0 and key in _ABOVE_ZERO):
            raise _bad(f"{name}.{key}", f"{value!r} is not allowed: a {'whole ' if whole else ''}number, {least}")
    parts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return kind(**parts)


def _bad(name: str, text: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, text, field=name)
