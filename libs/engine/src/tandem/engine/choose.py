"""Makes the engine that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tandem.core.ids import Role
from tandem.engine.port import Engine
from tandem.engine.rank.settings import RankSettings
from tandem.engine.worker.settings import EngineName, WorkerSettings
from tandem.rpc.control import Controlled
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.settings import Settings

if TYPE_CHECKING:
    from tandem.engine.mock.settings import MockSettings


def make_engine(role: Role, settings: WorkerSettings) -> Engine:
    """The engine, not started. Its package is imported only here, so that the mock needs no torch."""
    if settings.engine is EngineName.MOCK:
        from tandem.engine.mock.engine import MockEngine

        return MockEngine(_mock(settings), role)
    from tandem.engine.sglang.engine import SglangEngine
    from tandem.engine.sglang.settings import SglangSettings

    return SglangEngine(role, SglangSettings.load().options(settings.model_path, settings.served_name))


def controlled(role: Role, settings: WorkerSettings) -> Controlled:
    """Every setting that a worker and its engine run with."""
    everything = (settings, RankSettings.load(), _of_engine(settings), TlsSettings.load())
    return Controlled(role.value, everything, settings.worker_id)


def _of_engine(settings: WorkerSettings) -> Settings:
    if settings.engine is EngineName.MOCK:
        return _mock(settings)
    from tandem.engine.sglang.settings import SglangSettings

    return SglangSettings.load()


def _mock(settings: WorkerSettings) -> MockSettings:
    from tandem.engine.mock.settings import MockSettings

    overrides: dict[str, object] = {"model": settings.served_name}
    if (Path(settings.model_path) / "tokenizer.json").is_file():
        overrides["tokenizer_path"] = settings.model_path
    return MockSettings.load(**overrides)
