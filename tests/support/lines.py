"""Lines that users copy, held against what they are for: the command's parser, and the settings of services."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.util import find_spec

import click
import pytest
import typer

from tandem.cli.__main__ import app
from tools import settings_doc


def parse(line: str) -> None:
    """Raises UsageError for a command or an option that is not there, or a value that it does not take."""
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = typer.Context(command)
    while (commands := getattr(command, "commands", None)) is not None:
        if words and words[0] in commands:
            command = commands[words.pop(0)]
        elif getattr(command, "invoke_without_command", False) and not (words and words[0][0] != "-"):
            break
        else:
            raise click.UsageError(f"no such command: {' '.join(words[:1]) or line}")
    command.make_context(command.name, words, parent=context).close()


def load(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Loads every settings class that the line's variables belong to; how many. Raises where one is refused."""
    *pairs, _, _, module = shlex.split(line)
    assert find_spec(module) is not None
    return load_settings(dict(pair.split("=", 1) for pair in pairs), monkeypatch)


def load_settings(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The same, of variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    classes = [
        one for one in settings_doc.classes() if any(one.env_name(field) in variables for field in one.model_fields)
    ]
    for one in classes:
        one.load()
    return len(classes)
