"""The tandem command: its options, and which module does what.

What takes long to import is imported by the command that needs it: `--help` and completion are to be quick.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tandem.cli import completion, operate
from tandem.cli.authorities import CaFile
from tandem.cli.bench_serve import command as bench_serve
from tandem.cli.board import read_state
from tandem.cli.calibrate import command as calibrate
from tandem.cli.doctor import command as doctor
from tandem.cli.plan import (
    MAX_PROCESSES,
    MAX_WORKERS,
    DeviceChoice,
    EngineChoice,
    Machine,
    ProviderChoice,
    UpOptions,
    make_plan,
    parse_ratio,
)
from tandem.cli.planner import command as planner
from tandem.cli.sim_serve import command as sim_serve
from tandem.cli.sizing import command as sizing
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.exits import ExitCode

app = typer.Typer(
    help="Serves LLMs with prefill and decode in processes of their own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measures this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")
sim = typer.Typer(help="Runs clusters on a virtual clock, with faults.", no_args_is_help=True)
app.add_typer(sim, name="sim")
keys = typer.Typer(help="API keys of the gateway's clients.", no_args_is_help=True)
app.add_typer(keys, name="keys")

KeepPrefixes = Annotated[
    bool, typer.Option("--keep-prefixes", help="Decode keeps KV of past prompts, and gets the rest of new ones only.")
]
MaySwitch = Annotated[
    bool,
    typer.Option("--role-switch", help="Let workers change between prefill and decode as they run: tandem switch."),
]

_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def up(
    ratio: Annotated[str, typer.Option(help="Workers, prefill:decode; 0:0: none.")] = "1:1",
    unified: Annotated[int, typer.Option(min=0, max=MAX_WORKERS, help="Workers that do both.")] = 0,
    engine: Annotated[EngineChoice, typer.Option(help="Engine of every worker.")] = EngineChoice.SGLANG,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint folder or Hugging Face id; default: the tiny model. Repeatable."),
    ] = None,
    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name to serve it under; default: the last part of --model. Repeatable, in their order."),
    ] = None,
    provider: Annotated[ProviderChoice, typer.Option(help="How KV travels.")] = ProviderChoice.AUTO,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's HTTP port; 0: any free one.")] = 8000,
    gateway_processes: Annotated[int, typer.Option(min=1, max=MAX_PROCESSES, help="Of the gateway, on that port.")] = 1,
    page_size: Annotated[int | None, typer.Option(min=1, max=65536, help="Tokens per KV page.")] = None,
    tp: Annotated[int, typer.Option(min=1, max=64, help="Tensor parallel size of every worker.")] = 1,
    keep_prefixes: KeepPrefixes = False,
    role_switch: MaySwitch = False,
    tool_call_parser: Annotated[str, typer.Option(help="SGLang's parser of the model's tool calls.")] = "",
    reasoning_parser: Annotated[str, typer.Option(help="SGLang's parser of the model's reasoning.")] = "",
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A server argument of SGLang, or a setting of the mock. Repeatable."),
    ] = None,
    device: Annotated[
        DeviceChoice, typer.Option(help="auto: GPUs where there are some and SGLang is not installed for the CPU.")
    ] = DeviceChoice.AUTO,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="[PROCESS:]KEY=VALUE", help="A variable for one process, or for all. Repeatable."),
    ] = None,
    drain_s: Annotated[int, typer.Option(min=0, max=3600, help="Time for running requests at the end.")] = 30,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no logs.")] = False,
    log_dir: Annotated[Path | None, typer.Option(help="Write one log file per process here.")] = None,
    state_file: Annotated[Path | None, typer.Option(help="Where to say what runs; default: .run/up.json.")] = None,
) -> None:
    """Starts a whole system on this machine, and ends it on Ctrl-C."""
    from tandem.cli import settings
    from tandem.cli.up import UpView, require_free_port, run_up

    prefill, decode = parse_ratio(ratio)
    options = UpOptions(
        prefill=prefill,
        decode=decode,
        unified=unified,
        engine=engine,
        models=tuple(model or [settings.default_model()]),
        model_names=tuple(model_name or ()),
        provider=provider,
        port=port,
        gateway_processes=gateway_processes,
        page_size=page_size,
        tp=tp,
        keep_prefixes=keep_prefixes,
        role_switch=role_switch,
        device=device,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        engine_args=tuple(engine_arg or ()),
        env=tuple(env or ()),
        drain_ms=drain_s * 1000,
    )
    inherited = settings.inherited()
    machine = Machine(settings.available_cores(), settings.visible_gpus(), settings.sglang_for_cpu())
    plan = make_plan(options, machine, inherited)
    require_free_port(port)
    view = UpView(options.served[0][0], quiet, log_dir, state_file or settings.CliSettings.load().state_file)
    raise typer.Exit(asyncio.run(run_up(plan, view, inherited, options.drain_ms)))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on with, or with --chat a message.")],
    url: Annotated[str, typer.Option(help="The gateway; default: the system started from this folder.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens at most.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: always the likeliest token.")] = None,
    stream: Annotated[bool, typer.Option(help="Show the answer as it comes.")] = True,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    model: Annotated[str, typer.Option(help="Model to ask; default: the first.")] = "",
    ca: CaFile = None,
) -> None:
    """Asks a gateway and prints the answer."""
    from tandem.cli import settings
    from tandem.cli.asking import GatewayClient, Question

    own = settings.CliSettings.load()
    if not url:
        url = _gateway_here(own.state_file) if own.state_file.exists() else own.url
    client = GatewayClient(url, own.api_key.get_secret_value(), ca or own.ca_file)
    try:
        question = Question(prompt, max_tokens, temperature, chat, model)
        client.ask(question, stream=stream, show=lambda text: print(text, end="", flush=True))
    finally:
        client.close()
    print()


@app.command()
def workers(
    bootstrap: Annotated[str, typer.Option(help="host:port of bootstrap; default: of the system run here.")] = "",
    admin: Annotated[str, typer.Option("--admin", "--url", help="host:port of a gateway's AdminService.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lists the workers: pages, rooms and links of each."""
    from rich.console import Console

    from tandem.cli.cluster import members_of_bootstrap, members_of_gateway, table_of
    from tandem.rpc.credentials import Credentials, TlsSettings

    credentials = Credentials.from_settings(TlsSettings.load())
    if admin:
        members = asyncio.run(members_of_gateway(admin.removeprefix("http://"), credentials))
    else:
        members = asyncio.run(members_of_bootstrap(bootstrap or _bootstrap_here(), credentials))
    if as_json:
        print(json.dumps([member.document() for member in members], indent=2))
        return
    console = Console()
    console.print(table_of(members) if members else "No worker is registered.", soft_wrap=True)


@app.command()
def drain(
    worker_id: Annotated[str, typer.Argument(help="The worker.", autocompletion=completion.worker_ids)],
    bootstrap: Annotated[str, typer.Option(help="host:port of bootstrap; default: of the system run here.")] = "",
    admin: Annotated[str, typer.Option(help="host:port of a gateway's AdminService, to ask it instead.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Gives a worker no more requests; those that run finish."""
    _mark(worker_id, bootstrap, admin, draining=True, as_json=as_json)


@app.command()
def undrain(
    worker_id: Annotated[str, typer.Argument(help="The worker.", autocompletion=completion.worker_ids)],
    bootstrap: Annotated[str, typer.Option(help="host:port of bootstrap; default: of the system run here.")] = "",
    admin: Annotated[str, typer.Option(help="host:port of a gateway's AdminService, to ask it instead.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Gives a drained worker requests again."""
    _mark(worker_id, bootstrap, admin, draining=False, as_json=as_json)


@app.command()
def switch(
    worker_id: Annotated[str, typer.Argument(help="The worker.", autocompletion=completion.worker_ids)],
    role: Annotated[operate.RoleChoice, typer.Argument(help="What it is to do.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="End it and start another one, also where it could switch as it runs.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, max=86_400, help="Time to wait for that.")] = 600,
    admin: Annotated[
        str, typer.Option(help="host:port of a gateway's AdminService: of its workers, not of those run here.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Changes a worker's role, as it runs if its engine can; requests that run finish before."""
    from tandem.cli import settings
    from tandem.cli.switching import switch_here, switch_there
    from tandem.core.ids import Role
    from tandem.rpc.credentials import Credentials, TlsSettings

    credentials, wanted = Credentials.from_settings(TlsSettings.load()), Role(role.value)
    if admin and restart:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, "--restart is for a system run here, without --admin", field="restart"
        )
    if admin:
        name = asyncio.run(switch_there(admin, credentials, worker_id, wanted, timeout_s))
    else:
        state_file = settings.CliSettings.load().state_file
        name = asyncio.run(switch_here(state_file, credentials, worker_id, wanted, timeout_s, restart=restart))
    said = f"{worker_id}: {wanted.value}" if name == worker_id else f"{worker_id} -> {name}"
    print(json.dumps({"before": worker_id, "after": name, "role": wanted.value}, indent=2) if as_json else said)


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Where to write them, in a folder for each service.")],
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="One more host name or IP address that servers have. Repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are good.")] = 365,
    keep: Annotated[
        bool, typer.Option("--keep", help="Do nothing if all are there and good for 30 days; else make all anew.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace those that are there.")] = False,
) -> None:
    """Makes certificates for mTLS between services, for development: an authority and one for each service."""
    from tandem.cli import certs as certificates

    if keep and certificates.usable(folder):
        print(f"the certificates in {folder} are good")
        return
    certificates.make(folder, name or (), days, force=force or keep)
    print(f"certificates for {', '.join(certificates.MEMBERS)} are in {folder}, good for {days} days")


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Whose key it is; logs name it.")],
    file: Annotated[
        Path | None, typer.Option(help="The gateway's key file, to which the digest is appended; default: print it.")
    ] = None,
) -> None:
    """Makes a key, which is printed once and kept nowhere."""
    from tandem.cli import keys as key_file

    made = key_file.new(name, file)
    print(made.key)
    kept = f"its digest is in {file}" if file else f"TANDEM_GATEWAY_API_KEYS_FILE needs the line: {made.line}"
    print(kept, file=sys.stderr)


@sim.command("run")
def sim_run(
    seed: Annotated[int | None, typer.Option(min=0, help="First seed; default: a new one, which is printed.")] = None,
    rooms: Annotated[int, typer.Option(min=1, help="Runs seed after seed until there were as many rooms.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Or until this much time is over; 0: no bound.")] = 0,
    trace: Annotated[bool, typer.Option("--trace", help="Print what happened last in any case.")] = False,
    shrink: Annotated[Path | None, typer.Option(help="Write the shortest story of what breaks into this file.")] = None,
) -> None:
    """Runs one seed, or many; exit code 1 and the command that repeats it if an invariant is broken."""
    from tandem.cli.sim.command import run as run_sim

    raise typer.Exit(run_sim(seed, rooms, seconds, trace=trace, shrink=shrink))


@sim.command("tell")
def sim_tell(story: Annotated[Path, typer.Argument(help="A file that `sim run --shrink` wrote.")]) -> None:
    """Runs a story again, and prints what happens; exit code 1 if it still breaks an invariant."""
    from tandem.cli.sim.command import tell

    raise typer.Exit(tell(story))


sim_serve.register(sim)
calibrate.register(app)
sizing.register(app)


@bench.command("kv", context_settings=_FORWARD)
def bench_kv(context: typer.Context) -> None:
    """How fast KV pages move between two processes, per provider and page size. See: tandem bench kv --help."""
    from tandem.rdma.bench.kv import main as measure

    raise typer.Exit(measure(context.args))


@bench.command("post", context_settings=_FORWARD)
def bench_post(context: typer.Context) -> None:
    """What posting one RDMA write costs on Python's side. See: tandem bench post --help."""
    from tandem.rdma.bench.post import main as measure

    raise typer.Exit(measure(context.args))


@bench.command("pd", context_settings=_FORWARD)
def bench_pd(context: typer.Context) -> None:
    """One engine, disaggregated and by itself, side by side. See: tandem bench pd --help."""
    from tandem.cli.bench_pd.command import main as measure

    raise typer.Exit(measure(context.args))


@bench.command("gateway", context_settings=_FORWARD)
def bench_gateway(context: typer.Context) -> None:
    """The gateway and its peers before mock workers, in one run. See: tandem bench gateway --help."""
    from tandem.cli.bench_gateway.command import main as measure

    raise typer.Exit(measure(context.args))


operate.register(app)
planner.register(app)
bench_serve.register(bench)
doctor.register(app)


def _mark(worker_id: str, bootstrap: str, admin: str, *, draining: bool, as_json: bool) -> None:
    from tandem.cli.cluster import drain_at_gateway, set_draining
    from tandem.rpc.credentials import Credentials, TlsSettings

    credentials = Credentials.from_settings(TlsSettings.load())
    if admin:
        asyncio.run(drain_at_gateway(admin, worker_id, draining=draining, credentials=credentials))
    else:
        address = bootstrap or _bootstrap_here()
        asyncio.run(set_draining(address, worker_id, draining=draining, credentials=credentials))
    if as_json:
        print(json.dumps({"worker_id": worker_id, "draining": draining}))
    else:
        print(f"{worker_id}: {'draining' if draining else 'takes requests'}")


def _bootstrap_here() -> str:
    from tandem.cli import settings

    return _started(read_state(settings.CliSettings.load().state_file).bootstrap)


def _gateway_here(state_file: Path) -> str:
    return _started(read_state(state_file).url)


def _started(address: str) -> str:
    if not address:
        raise TandemError(ErrorReason.NO_WORKER, "the system that runs here is still starting")
    return address


def main() -> NoReturn:
    """Entry point of `tandem`."""
    try:
        app(prog_name="tandem")
    except TandemError as error:
        print(f"tandem: {error.message}", file=sys.stderr)
        sys.exit(ExitCode.BAD_SETTINGS)
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
