"""Which of SGLang's model modules a checkpoint needs: it imports all of them otherwise, seconds in each process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def unneeded_modules(model_path: str) -> list[str]:
    """Names of model modules that SGLang need not import for a local checkpoint; empty if that can't be told.

    A module is needed if it names an architecture of the checkpoint. One that no module names is left to SGLang.
    """
    config = Path(model_path) / "config.json"
    folder = _models_folder()
    if folder is None or not config.is_file():
        return []
    architectures = json.loads(config.read_text()).get("architectures") or []
    modules = {path.stem: path.read_text(errors="replace") for path in folder.glob("*.py")}
    needed = {name for name, text in modules.items() if any(f"class {arch}(" in text for arch in architectures)}
    if not needed:
        return []
    return sorted(modules.keys() - needed - {"__init__", "registry"})


def _models_folder() -> Path | None:
    spec = importlib.util.find_spec("sglang")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) / "srt" / "models" if places else None
