"""The log level that returns, and settings as ControlService shows them."""

from __future__ import annotations

import asyncio
import logging

import pytest
from pydantic import Field, SecretStr

from tandem.core.errors import TandemError
from tandem.rpc.control import Controlled, ControlServicer, LogLevel
from tandem.rpc.settings import Settings
from tandem.v1 import control_pb2


class Small(Settings, env_prefix="TANDEM_SMALL_"):
    """Two settings."""

    key: SecretStr = Field(default=SecretStr("open sesame"))
    count: int = 3


@pytest.fixture
def logger() -> logging.Logger:
    """One of the test's own, at INFO."""
    found = logging.Logger("of a test")
    found.setLevel("INFO")
    return found


class Returned(logging.Handler):
    """Says when a level has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
        self.event.set()


@pytest.fixture
async def returned():
    handler = Returned()
    logging.getLogger("tandem.audit").addHandler(handler)
    yield handler
    logging.getLogger("tandem.audit").removeHandler(handler)


async def test_a_level_stays_or_returns(logger: logging.Logger, returned: Returned) -> None:
    level = LogLevel(logger)
    assert level.set("WARNING", 0) == ""
    assert level.name == "WARNING"
    assert level.set("DEBUG", 20) == "WARNING"
    assert level.name == "DEBUG"
    await asyncio.wait_for(returned.event.wait(), 10)
    assert level.name == "WARNING"
    assert returned.text == "time is over: log level: DEBUG -> WARNING"


async def test_a_while_on_top_of_a_while_returns_to_the_first_level(logger: logging.Logger, returned: Returned) -> None:
    level = LogLevel(logger)
    assert level.set("DEBUG", 60_000) == "INFO"
    assert level.set("ERROR", 10) == "INFO"
    await asyncio.wait_for(returned.event.wait(), 10)
    assert level.name == "INFO"
    assert returned.text.endswith("ERROR -> INFO")


async def test_a_while_ends_when_another_begins(logger: logging.Logger, returned: Returned) -> None:
    level, later = LogLevel(logger), asyncio.Event()
    level.set("DEBUG", 10)
    level.set("ERROR", 60_000)
    asyncio.get_running_loop().call_later(0.02, later.set)
    await later.wait()
    assert (level.name, returned.text) == ("ERROR", ""), "the first return would have come before"
    level.set("INFO", 0)


async def test_for_good_ends_a_while(logger: logging.Logger, returned: Returned) -> None:
    level = LogLevel(logger)
    level.set("DEBUG", 10)
    level.set("ERROR", 0)
    level.set("DEBUG", 20)
    await asyncio.wait_for(returned.event.wait(), 10)
    assert level.name == "ERROR", "the first return would have been to INFO"


@pytest.mark.parametrize(("level", "for_ms"), [("LOUD", 0), ("debug", 0), ("DEBUG", 86_400_001)])
async def test_what_is_not_allowed_changes_nothing(logger: logging.Logger, level: str, for_ms: int) -> None:
    with pytest.raises(TandemError, match=r"DEBUG, INFO, WARNING, ERROR|86400000"):
        LogLevel(logger).set(level, for_ms)
    assert logger.level == logging.INFO


async def test_settings_are_shown_without_secrets(logger: logging.Logger) -> None:
    servicer = ControlServicer(Controlled("decode", (Small(),), "d0"), LogLevel(logger))
    answer = await servicer.GetSettings(control_pb2.GetSettingsRequest(), None)  # type: ignore[arg-type]
    shown = {setting.variable: setting.value for setting in answer.settings}
    assert shown == {"TANDEM_SMALL_KEY": "********", "TANDEM_SMALL_COUNT": "3"}
    assert (answer.service, answer.worker_id, answer.log_level) == ("decode", "d0", "INFO")
