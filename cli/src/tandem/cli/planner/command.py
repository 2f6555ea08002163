"""`tandem planner`: its options. What takes long to import comes with the call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("planner")(planner)


def planner(
    apply: Annotated[
        str,
        typer.Option(metavar="COMMAND", help="Make changes with it, too: docs/planner.md. Default: recommend only."),
    ] = "",
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to answer /metrics; port 0: any.")] = "",
    costs: Annotated[
        str, typer.Option(metavar="FILE", help="Of `tandem calibrate` or `tandem plan --costs`; default: measured.")
    ] = "",
    admin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="AdminService of a gateway; for each that has clients. Default: of the system run here.",
        ),
    ] = None,
) -> None:
    """Watches what is asked of the workers of each role, and says when one should move, come or go."""
    from tandem.cli.planner.costs import costs_by
    from tandem.cli.planner.service import serve
    from tandem.cli.planner.settings import PlannerSettings
    from tandem.cli.services import admin_address
    from tandem.cli.settings import CliSettings
    from tandem.cli.sim_serve.model_file import read_model
    from tandem.rpc.credentials import TlsSettings
    from tandem.rpc.run import run_service

    options = {"apply": apply, "metrics_address": metrics, "costs": costs, "admin_address": ",".join(admin or ())}
    given = {name: value for name, value in options.items() if value}
    settings, tls = PlannerSettings.load(**given), TlsSettings.load()
    if not settings.gateways:
        here = admin_address("", CliSettings.load().state_file)
        settings = settings.model_copy(update={"admin_address": here})
    by = costs_by(read_model(Path(settings.costs))) if settings.costs else None
    raise typer.Exit(run_service(lambda stop: serve(settings, tls, stop, by)))
