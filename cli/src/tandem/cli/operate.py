"""The commands that look into running services and steer them: their options, and which module does what.

What needs gRPC is imported by the command that runs: `--help` and completion are to be quick.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli import completion
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.rpc.exits import ExitCode

if TYPE_CHECKING:
    from tandem.cli.services import Answer, Service
    from tandem.rpc.credentials import Credentials

Admin = Annotated[
    str, typer.Option("--admin", help="host:port of a gateway's AdminService; default: of the system run here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--worker", help="A worker, or bootstrap or gateway. Repeatable.", autocompletion=completion.service_names
    ),
]
Workers = Annotated[
    list[str] | None,
    typer.Option("--worker", help="Ask this worker's ranks, too. Repeatable.", autocompletion=completion.worker_ids),
]

PIPE_COLUMNS = 200

rooms = typer.Typer(help="Lists the rooms in flight, and ends one.")


class RoleChoice(Enum):
    """Roles that have a policy."""

    PREFILL = "prefill"
    DECODE = "decode"
    UNIFIED = "unified"


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.add_typer(rooms, name="rooms")
    app.command("set-policy")(set_policy)
    app.command("loglevel")(loglevel)
    app.command("config")(config)
    app.command("top")(top)
    app.command("trace")(trace)


@rooms.callback(invoke_without_command=True)
def list_rooms(
    context: typer.Context,
    worker: Workers = None,
    everyone: Annotated[bool, typer.Option("--all", help="Ask every worker's ranks, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rooms at most, the oldest first.")] = 1000,
    admin: Admin = "",
    as_json: AsJson = False,
) -> None:
    """Lists the rooms in flight: of the gateway, and with --worker or --all of the workers' ranks."""
    if context.invoked_subcommand is not None:
        return
    from tandem.cli.rooms import rooms_of, rooms_of_ranks, table_of_ranks, table_of_rooms
    from tandem.cli.services import document

    credentials = _credentials()
    found, total = asyncio.run(rooms_of(_admin_address(admin), credentials, limit))
    asked = _workers(admin, worker or [], credentials) if worker or everyone else []
    answers = asyncio.run(rooms_of_ranks(asked, credentials, limit))
    if as_json:
        workers = {one.service.name: document(one.message) for one in answers if one.message is not None}
        _print_json(
            {"rooms": [document(room) for room in found], "total": total, "workers": workers, **_silent(answers)}
        )
    else:
        if found:
            _print(table_of_rooms(found))
        more = f", {total - len(found)} more" if total > len(found) else ""
        print(f"Rooms in flight: {len(found)}{more}.")
        if any(one.message is not None and one.message.rooms for one in answers):
            _print(table_of_ranks(answers))
        elif asked:
            print("No room is open on the ranks that have answered.")
    _end(answers)


@rooms.command("abort")
def abort_room(
    room: Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The room.")],
    worker: Annotated[
        str,
        typer.Option(help="End its leg there, whosever room it is.", autocompletion=completion.worker_ids),
    ] = "",
    admin: Admin = "",
    as_json: AsJson = False,
) -> None:
    """Ends a room on both legs; its client is told that an operator gave the request up."""
    from tandem.cli.rooms import abort_at_gateway, abort_at_worker, phase_of
    from tandem.cli.services import document

    credentials = _credentials()
    if worker:
        [service] = _workers(admin, [worker], credentials)
        asyncio.run(abort_at_worker(service, credentials, room))
        _say(f"{room}: ended on {worker}", {"room": str(room), "worker": worker}, as_json=as_json)
        return
    ended = asyncio.run(abort_at_gateway(_admin_address(admin), credentials, room))
    _say(f"{room}: ended, was {phase_of(ended)}, request {ended.request_id}", document(ended), as_json=as_json)


def set_policy(
    name: Annotated[str, typer.Argument(help="The policy.", autocompletion=completion.policy_names)],
    role: Annotated[RoleChoice | None, typer.Option(help="Only for workers of this role.")] = None,
    admin: Admin = "",
    as_json: AsJson = False,
) -> None:
    """Changes how the gateway chooses workers, from the next request on."""
    from tandem.cli.control import set_policy as ask

    wanted = None if role is None else Role(role.value)
    answer = asyncio.run(ask(_admin_address(admin), _credentials(), name, wanted))
    before = {
        Role.PREFILL: answer.prefill_before,
        Role.DECODE: answer.decode_before,
        Role.UNIFIED: answer.unified_before,
    }
    changes = {each.value: {"before": before[each], "after": name} for each in Role if wanted in (None, each)}
    lines = [f"{each}: {change['before']} -> {change['after']}" for each, change in changes.items()]
    _say("\n".join(lines), changes, as_json=as_json)


def loglevel(
    level: Annotated[str, typer.Argument(help="DEBUG, INFO, WARNING or ERROR.", autocompletion=completion.log_levels)],
    worker: Names = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every service.")] = False,
    for_s: Annotated[
        float, typer.Option(min=0, max=86_400, help="Return by itself after so many seconds; 0: stay.")
    ] = 0,
    admin: Admin = "",
    as_json: AsJson = False,
) -> None:
    """Changes what a running service logs: the gateway, or those that are named."""
    from tandem.cli.control import set_log_level

    credentials = _credentials()
    services = _services(admin, [] if everyone else worker or ["gateway"], credentials)
    # A wish for a while must not become one for good.
    for_ms = max(1, round(for_s * 1000)) if for_s else 0
    answers = asyncio.run(set_log_level(services, credentials, level.upper(), for_ms))
    done = {one.service.name: one.message for one in answers if one.message is not None}
    if as_json:
        changes = {
            name: {"before": said.previous, "after": level.upper(), "returns_to": said.returns_to or None}
            for name, said in done.items()
        }
        _print_json({"services": changes, **_silent(answers)})
    else:
        for name, said in done.items():
            returns = f", in {for_s:g} s {said.returns_to} again" if said.returns_to else ""
            print(f"{name}: {said.previous} -> {level.upper()}{returns}")
    _end(answers)


def config(worker: Names = None, admin: Admin = "", as_json: AsJson = False) -> None:
    """Shows the settings in force, secrets masked: of every service, or of those that are named."""
    from tandem.cli.control import settings_document, settings_lines, settings_of

    credentials = _credentials()
    answers = asyncio.run(settings_of(_services(admin, worker or [], credentials), credentials))
    if as_json:
        _print_json({"services": settings_document(answers), **_silent(answers)})
    else:
        print("\n".join(settings_lines(answers)).rstrip("\n"))
    _end(answers)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame; so it is where stdout is no terminal.")
    ] = False,
    interval_s: Annotated[float, typer.Option(min=0.2, max=60, help="Time between two frames.")] = 1.0,
    admin: Admin = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, one line per message.")] = False,
) -> None:
    """Shows workers, rooms and rates as they change; q quits."""
    from tandem.cli.top import run_top

    address = _admin_address(admin)
    asyncio.run(run_top(address, _credentials(), round(interval_s * 1000), once=once, as_json=as_json))


def trace(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="A request's X-Request-Id, or a trace id.")],
    admin: Admin = "",
    as_json: AsJson = False,
) -> None:
    """Shows where the time of one request went, in all services."""
    from tandem.cli.trace import show, trace_of

    found = asyncio.run(trace_of(_admin_address(admin), wanted, _credentials()))
    if as_json:
        _print_json(found.document())
        return
    from rich.console import Console

    console = Console()
    # What a program reads, or a file keeps, is not cut to a terminal's width.
    show(found, console if console.is_terminal else Console(width=max(console.width, PIPE_COLUMNS)))


def _credentials() -> Credentials:
    from tandem.rpc.credentials import Credentials, TlsSettings

    return Credentials.from_settings(TlsSettings.load())


def _admin_address(given: str) -> str:
    from tandem.cli.services import admin_address
    from tandem.cli.settings import CliSettings

    return admin_address(given, CliSettings.load().state_file)


def _services(admin: str, names: Sequence[str], credentials: Credentials) -> list[Service]:
    """The services of these names; all of them without names."""
    from tandem.cli.services import admin_address, pick, services_here, services_of
    from tandem.cli.settings import CliSettings

    state_file = CliSettings.load().state_file
    if admin:
        there = asyncio.run(services_of(admin_address(admin, state_file), credentials))
    else:
        there = services_here(state_file)
    return pick(there, names) if names else there


def _workers(admin: str, names: Sequence[str], credentials: Credentials) -> list[Service]:
    """The same, of workers only."""
    services = _services(admin, names, credentials)
    workers = [service for service in services if service.is_worker]
    if names and len(workers) < len(services):
        other = next(service.name for service in services if service not in workers)
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{other} is no worker: only workers have ranks")
    return workers


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table, soft_wrap=True)


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def _say(text: str, document: object, *, as_json: bool) -> None:
    print(json.dumps(document, indent=2) if as_json else text)


def _silent(answers: Sequence[Answer]) -> dict[str, dict[str, str]]:
    return {"errors": {one.service.name: one.error for one in answers if one.message is None}}


def _end(answers: Sequence[Answer]) -> None:
    """Names the services that did not do as asked; the exit code is 1 then."""
    failed = [one for one in answers if one.message is None]
    for one in failed:
        print(f"tandem: {one.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(ExitCode.FAILED)
