"""`tandem doctor`: its options, and how findings are shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.rpc.exits import ExitCode

if TYPE_CHECKING:
    from tandem.cli.doctor.rules import Finding


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)


def doctor(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's HTTP port; 0: any free one.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Checks whether this machine can run Tandem, and says what to do; exit code 1 if `tandem up` can't work."""
    from tandem.cli.doctor.probe import gather
    from tandem.cli.doctor.rules import Level, examine

    findings = examine(gather(port))
    if as_json:
        print(document(findings))
    else:
        _show(findings)
    failed = any(finding.level is Level.FAILED for finding in findings)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.OK)


def document(findings: list[Finding]) -> str:
    """As JSON."""
    rows = [{"name": one.name, "level": one.level.value, "means": one.means, "do": one.do} for one in findings]
    return json.dumps({"schema": "tandem.doctor/1", "findings": rows}, indent=2)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tandem.cli.doctor.rules import Level

    styles = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for one in findings:
        told = Text(one.means)
        if one.do:
            told.append(f"\ndo: {one.do}", style="cyan")
        table.add_row(Text(one.level.value, style=styles[one.level]), one.name, told)
    Console().print(table)
