"""The lines of docs/setups.md: the parser of the command takes them, and settings take the variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lines import load, parse

PAGE = Path(__file__).resolve().parents[3] / "docs" / "setups.md"
LINES = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]
COMMANDS = [line for line in LINES if line.startswith("tandem ")]
SERVICES = [line for line in LINES if " python -m " in line]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_parser_takes_it(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", SERVICES)
def test_settings_take_its_variables(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(line, monkeypatch) > 0


def test_there_are_lines_of_each_kind() -> None:
    assert len(COMMANDS) > 10
    assert len(SERVICES) == 4


def test_a_wrong_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("tandem up --rations 1:2", "tandem up --tp 0"):
        with pytest.raises(Exception, match=r"No such option|greater than or equal to 1"):
            parse(line)
    with pytest.raises(SystemExit):  # having said which setting it is
        load("TANDEM_PREFILL_PORT=many python -m tandem.prefill", monkeypatch)
