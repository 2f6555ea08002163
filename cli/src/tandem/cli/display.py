"""What a person sees of a running system: its stages, its logs, and what to try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.cli.board import Board, Row, Stage, State

_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
_STAGE_STYLES: Final = {
    Stage.WAITING: "dim",
    Stage.REGISTERED: "green",
    Stage.LISTENING: "green",
    Stage.READY: "bold green",
    Stage.RESTARTING: "yellow",
    Stage.STOPPING: "yellow",
    Stage.FAILED: "bold red",
}
QUESTION: Final = "What do you like to eat?"


class Display(Protocol):
    """Shows a system."""

    def changed(self, row: Row) -> None:
        """A process came to another stage."""

    def line(self, name: str, text: str) -> None:
        """A process logged a line."""

    def say(self, text: str) -> None:
        """Something to know about the whole system."""

    def close(self) -> None:
        """Shows no more."""


class PlainDisplay:
    """For pipes and files: one line per change on stdout, logs on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._logs = None if quiet else Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._shown: dict[str, tuple[Stage, str]] = {}

    def changed(self, row: Row) -> None:
        """`name: stage (detail)`."""
        if self._shown.get(row.name) != (row.stage, row.detail):
            self._shown[row.name] = (row.stage, row.detail)
            self._out.print(f"{row.name}: {_stage_text(row)}")

    def line(self, name: str, text: str) -> None:
        """`name | text`."""
        if self._logs is not None:
            self._logs.print(f"{name} | {text}")

    def say(self, text: str) -> None:
        """As it is."""
        self._out.print(text)

    def close(self) -> None:
        """Nothing to do."""


class LiveDisplay:
    """For a terminal: a table of stages that stays below the logs until all are ready."""

    def __init__(self, board: Board, *, quiet: bool) -> None:
        self._board = board
        self._quiet = quiet
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._colours = {row.name: _COLOURS[i % len(_COLOURS)] for i, row in enumerate(board.rows)}
        self._width = max(len(name) for name in self._colours)
        self._live: Live | None = Live(self._table(), console=self._console, refresh_per_second=8)
        self._live.start()

    def changed(self, row: Row) -> None:
        """Redraws the table, or says it in a line once the table is gone."""
        if self._live is not None:
            self._live.update(self._table())
        else:
            self._print(row.name, Text(_stage_text(row), style=_STAGE_STYLES.get(row.stage, "")))

    def line(self, name: str, text: str) -> None:
        """`name | text`, the name in its colour."""
        if not self._quiet:
            self._print(name, Text(text))

    def say(self, text: str) -> None:
        """Ends the table and prints."""
        self.close()
        self._console.print(text)

    def close(self) -> None:
        """Ends the table."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, name: str, text: Text) -> None:
        self._console.print(Text(f"{name:<{self._width}} | ", style=self._colour(name)).append_text(text))

    def _colour(self, name: str) -> str:
        """Of a process, which may have come later."""
        return self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("process", "stage", "address", "pid"):
            table.add_column(title, header_style="dim", no_wrap=True)
        for row in self._board.rows:
            table.add_row(
                Text(row.name, style=self._colour(row.name)),
                Text(_stage_text(row), style=_STAGE_STYLES.get(row.stage, "")),
                row.address,
                str(row.pid or ""),
            )
        return table


class LogFiles:
    """One file per process in a folder, whatever the display shows."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        """Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, TextIO] = {name: (folder / f"{name}.log").open("w") for name in names}

    def line(self, name: str, text: str) -> None:
        """Writes a line. Raises OSError."""
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.log").open("a")
        self._files[name].write(f"{text}\n")
        self._files[name].flush()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def make_display(board: Board, *, quiet: bool) -> Display:
    """For what stdout is."""
    return LiveDisplay(board, quiet=quiet) if Console().is_terminal else PlainDisplay(quiet=quiet)


def welcome(state: State) -> str:
    """What to do with a system that is ready."""
    chat = {"model": state.model, "messages": [{"role": "user", "content": QUESTION}]}
    return "\n".join(
        [
            "",
            f"Tandem is ready: {state.url}",
            "",
            f"  OpenAI API   {state.url}/v1",
            f"  admin        {state.admin}    bootstrap {state.bootstrap}",
            "",
            "Try",
            "",
            f"  curl {state.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(chat)}'",
            "",
            f'  tandem generate --chat "{QUESTION}"        tandem workers',
            "",
            "Ctrl-C ends it.",
        ]
    )


def _stage_text(row: Row) -> str:
    return f"{row.stage.value} ({row.detail})" if row.detail else row.stage.value
