"""Makes the engine that the settings name."""

from __future__ import annotations

from pathlib import Path

from tandem.core.ids import Role
from tandem.engine.port import Engine
from tandem.engine.worker.settings import EngineName, WorkerSettings


def make_engine(role: Role, settings: WorkerSettings) -> Engine:
    """The engine, not started. Its package is imported only here, so that the mock needs no torch."""
    if settings.engine is EngineName.MOCK:
        from tandem.engine.mock.engine import MockEngine
        from tandem.engine.mock.settings import MockSettings

        overrides: dict[str, object] = {"model": settings.served_name}
        if (Path(settings.model_path) / "tokenizer.json").is_file():
            overrides["tokenizer_path"] = settings.model_path
        return MockEngine(MockSettings.load(**overrides), role)
    from tandem.engine.sglang.engine import SglangEngine
    from tandem.engine.sglang.settings import SglangSettings

    return SglangEngine(role, SglangSettings.load().options(settings.model_path, settings.served_name))
