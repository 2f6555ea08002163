"""The lines of docs/setups.md: the parser of the command takes them, and settings take the variables."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from tandem.cli.__main__ import app
from tools import settings_doc

PAGE = Path(__file__).resolve().parents[3] / "docs" / "setups.md"
LINES = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]
COMMANDS = [line for line in LINES if line.startswith("tandem ")]
SERVICES = [line for line in LINES if " python -m " in line]


def parse(line: str) -> None:
    """Raises UsageError for an option that is not there, or a value that it does not take."""
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = typer.Context(command)
    while (commands := getattr(command, "commands", None)) is not None:
        command = commands[words.pop(0)]
    command.make_context(command.name, words, parent=context).close()


def load(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Loads every settings class that the line's variables belong to; how many. Raises where one is refused."""
    *pairs, _, _, module = shlex.split(line)
    assert find_spec(module) is not None
    for name, value in (pair.split("=", 1) for pair in pairs):
        monkeypatch.setenv(name, value)
    names = [pair.split("=", 1)[0] for pair in pairs]
    classes = [one for one in settings_doc.classes() if any(one.env_name(field) in names for field in one.model_fields)]
    for one in classes:
        one.load()
    return len(classes)


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
