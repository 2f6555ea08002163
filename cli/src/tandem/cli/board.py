"""What is known of a running system: one row per process, told to whoever watches, and kept in the state file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from tandem.cli.plan import ProcessPlan
from tandem.core.errors import ErrorReason, TandemError


class Stage(Enum):
    """Where a process is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    REGISTERED = "registered"
    LISTENING = "listening"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


UP = frozenset({Stage.REGISTERED, Stage.LISTENING, Stage.READY})
"""Stages of a process that serves."""


@dataclass(frozen=True, slots=True)
class Row:
    """One process."""

    name: str
    kind: str
    stage: Stage = Stage.WAITING
    detail: str = ""
    pid: int = 0
    """0 while it does not run."""
    address: str = ""
    """host:port, empty until it listens."""
    metrics: str = ""
    """host:port of its /metrics; empty where there is none, and until it listens."""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What the state file holds."""

    pid: int
    """Of `tandem up`."""
    model: str
    url: str
    """Of the gateway; empty until it listens."""
    admin: str
    """host:port of AdminService."""
    bootstrap: str
    """host:port of BootstrapService."""
    ready: bool
    processes: tuple[Row, ...]
    up: str = ""
    """host:port of SystemService, of `tandem up` itself."""

    def row(self, name: str) -> Row:
        """One process. Raises KeyError."""
        return {row.name: row for row in self.processes}[name]


class Board:
    """Rows by name. `watch` gets every row that changes."""

    def __init__(self, plans: Iterable[ProcessPlan], model: str, path: Path | None) -> None:
        """path: of the state file; None = none."""
        self._rows = {plan.name: Row(plan.name, plan.kind.value) for plan in plans}
        self._model = model
        self._path = path
        self._watchers: list[Callable[[Row], None]] = []
        self._ready = False
        self.admin = ""
        """host:port of AdminService, once it listens."""
        self.url = ""
        """Of the gateway, once it listens."""
        self.up = ""
        """host:port of SystemService, once it listens."""

    def watch(self, watcher: Callable[[Row], None]) -> None:
        """Calls it with every row that changes, from now on."""
        self._watchers.append(watcher)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them, in the order of their start."""
        return tuple(self._rows.values())

    def row(self, name: str) -> Row:
        """One of them."""
        return self._rows[name]

    def set(self, name: str, **changes: Any) -> None:
        """Changes fields of a row."""
        row = replace(self._rows[name], **changes)
        if self._ready and row.stage in UP:
            row = replace(row, stage=Stage.READY)
        if row != self._rows[name]:
            self._rows[name] = row
            self._write()
            for watcher in self._watchers:
                watcher(row)

    def replace(self, name: str, plan: ProcessPlan) -> None:
        """Another process takes the place of one."""
        there = [Row(plan.name, plan.kind.value) if row.name == name else row for row in self.rows]
        self._rows = {row.name: row for row in there}
        self._write()

    def set_ready(self, ready: bool) -> None:
        """The gateway answers, or not."""
        self._ready = ready
        if ready:
            for row in self.rows:
                if row.stage in UP:
                    self.set(row.name, stage=Stage.READY)
        self._write()

    @property
    def state(self) -> State:
        """Everything, as the state file holds it."""
        bootstrap = self._rows["bootstrap"].address
        return State(os.getpid(), self._model, self.url, self.admin, bootstrap, self._ready, self.rows, self.up)

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(asdict(self.state), default=lambda value: value.value, indent=2) + "\n")
        beside.replace(self._path)

    def forget(self) -> None:
        """Removes the state file, if it is ours."""
        if self._path is None:
            return
        try:
            if read_state(self._path).pid == os.getpid():
                self._path.unlink()
        except (TandemError, FileNotFoundError):
            return


def read_state(path: Path) -> State:
    """Reads a state file. Raises INVALID_ARGUMENT where there is none, or it is none."""
    try:
        fields = json.loads(path.read_text())
        rows = tuple(Row(**{**row, "stage": Stage(row["stage"])}) for row in fields.pop("processes"))
        return State(processes=rows, **fields)
    except OSError as error:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"no system runs here: there is no {path} (`tandem up` writes it)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} is not a state file of `tandem up`") from error
