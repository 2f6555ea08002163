"""Settings of the mock come from the environment, within their ranges."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.settings import MockSettings
from tests.support.mock.pair import settings_of
from tests.support.mock.ranks import Wire


def test_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_MOCK_PAGE_SIZE", "32")
    monkeypatch.setenv("TANDEM_MOCK_DECODE_US_PER_STEP", "12.5")
    settings = MockSettings()
    assert (settings.page_size, settings.decode_us_per_step) == (32, 12.5)


@pytest.mark.parametrize(("name", "value"), [("head_bytes", 12), ("page_size", 0), ("vocab", 1), ("pages", 0)])
def test_ranges_are_kept(name: str, value: int) -> None:
    with pytest.raises(ValidationError):
        MockSettings(**{name: value})


async def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    engine = MockEngine(settings_of(tokenizer_path=tmp_path), Role.DECODE, Wire().make)
    with pytest.raises(TandemError) as caught:
        await engine.start()
    assert caught.value.reason is ErrorReason.ENGINE_FAILED
    assert "tokenizer.json" in caught.value.message
    await engine.close()
