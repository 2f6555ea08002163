"""`tandem bench serve` and `tandem bench compare`: their options. What takes long to import comes with the call."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli.authorities import CaFile
from tandem.cli.bench_serve.choices import Api, Arrivals, WorkloadName
from tandem.cli.bench_serve.options import (
    MAX_TOKENS,
    MaxNewTokens,
    MaxPromptTokens,
    NewTokens,
    PromptTokens,
    Spread,
)
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.exits import ExitCode

if TYPE_CHECKING:
    from tandem.cli.bench_serve.apis import Asking
    from tandem.cli.bench_serve.client import Target
    from tandem.cli.bench_serve.document import Result
    from tandem.cli.bench_serve.numbers import Slo
    from tandem.cli.bench_serve.run import Load


def register(bench: typer.Typer) -> None:
    """Adds these commands."""
    bench.command("serve")(serve)
    bench.command("compare")(compare)


def serve(
    url: Annotated[str, typer.Option(help="The server; default: the system started from this folder.")] = "",
    api: Annotated[Api, typer.Option(help="/v1/completions, /v1/chat/completions or /generate.")] = (Api.COMPLETIONS),
    model: Annotated[str, typer.Option(help="Model to ask; default: the first.")] = "",
    workload: Annotated[WorkloadName, typer.Option(help="What is asked: docs/bench.md.")] = WorkloadName.RANDOM,
    trace: Annotated[Path | None, typer.Option(help="Replay this instead: Mooncake's JSON lines, Azure's CSV.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, max=1000, help="How much faster to replay the trace.")] = 1.0,
    arrivals: Annotated[Arrivals, typer.Option(help="How requests come.")] = Arrivals.POISSON,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second; inf: all at once.")] = 4.0,
    requests: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Of a repeat; default: 100.")] = None,
    duration_s: Annotated[float, typer.Option(min=0, help="Send for so long; 0: no bound.")] = 0,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    spread: Spread = None,
    max_prompt_tokens: MaxPromptTokens = MAX_TOKENS,
    max_new_tokens: MaxNewTokens = MAX_TOKENS,
    vocabulary: Annotated[int, typer.Option(min=4, help="Token ids are below it.")] = 1000,
    eos: Annotated[bool, typer.Option("--eos", help="Let answers end by themselves; send no ignore_eos.")] = False,
    sessions: Annotated[bool, typer.Option(help="Name each conversation in the header X-Session-Id.")] = True,
    max_in_flight: Annotated[int, typer.Option(min=1, max=100_000, help="More are not sent, but counted.")] = 1024,
    timeout_s: Annotated[float, typer.Option(min=0.01, max=86_400, help="Of one request.")] = 600,
    warm_up: Annotated[int, typer.Option(min=0, max=10_000, help="Requests before, not counted.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Of everything, each with a seed of its own.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=1 << 32, help="Of the first repeat.")] = 0,
    slo: Annotated[str, typer.Option(help="Limits of goodput, e.g. ttft=1s,itl=50ms; tpot, e2e too.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the result here as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ca: CaFile = None,
) -> None:
    """Sends load to an OpenAI-compatible server at times that do not wait for answers, and measures it."""
    options = dict(locals())
    from tandem.cli.bench_serve.numbers import parse_slo

    limits = parse_slo(slo)
    asking, target = asking_of(url, api, model, vocabulary, eos, ca)
    asking = replace(asking, sessions=sessions)
    load = load_of(options, 100)
    result = _measured(target, asking, load, range(seed, seed + repeats), warm_up, limits, _settings(options))
    _keep(result, out, html, as_json)
    raise typer.Exit(ExitCode.OK if all(one["answered"] for one in result.summaries) else ExitCode.FAILED)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A result of `bench serve --out`.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another, of the same workload and seeds.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Two results side by side: ratios B / A, paired by repeat or by request, and how sure they are."""
    from tandem.cli.bench_serve.compare import differences, rows
    from tandem.cli.bench_serve.document import from_json
    from tandem.cli.bench_serve.show import show_comparison

    one, other = (from_json(_text(path), str(path)) for path in (first, second))
    found, different = rows(one, other), differences(one, other)
    if not as_json:
        show_comparison(found, different)
        return
    numbers = {
        row.name: {
            "first": row.first,
            "second": row.second,
            "ratio": row.ratio.value,
            "low": row.ratio.low,
            "high": row.ratio.high,
            "method": row.ratio.method.value,
            "verdict": row.verdict.name.lower(),
        }
        for row in found
    }
    print(json.dumps({"schema": "tandem.bench.compare/1", "differences": different, "numbers": numbers}))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} can't be read: {error}", field="file") from error


def asking_of(
    url: str, api: Api, model: str, vocabulary: int, eos: bool, ca_file: Path | None
) -> tuple[Asking, Target]:
    """What to ask, and where. ca_file: as `--ca`."""
    from tandem.cli import settings
    from tandem.cli.asking import GatewayClient
    from tandem.cli.bench_serve.apis import Asking
    from tandem.cli.bench_serve.client import target_of
    from tandem.cli.board import read_state

    own = settings.CliSettings.load()
    if not url:
        url = read_state(own.state_file).url if own.state_file.exists() else own.url
    key, ca_file = own.api_key.get_secret_value(), ca_file or own.ca_file
    target = target_of(url, api, key, ca_file)
    if not model and api is not Api.GENERATE:
        client = GatewayClient(url.rstrip("/").removesuffix("/v1"), key, ca_file)
        try:
            model = client.first_model()
        finally:
            client.close()
    return Asking(target.api, model, vocabulary, ignore_eos=not eos), target


def load_of(options: dict[str, Any], requests: int) -> Load:
    """What `bench serve` and `sim serve` are asked for, by the same options. requests: where neither their number nor
    a time or trace is given."""
    from tandem.cli.bench_serve.run import MAX_REQUESTS, Load, read_trace_file
    from tandem.cli.bench_serve.workload import shaped

    bounded = options["duration_s"] or options["trace"]
    taken = ("speed", "duration_s", "max_prompt_tokens", "max_new_tokens", "max_in_flight", "timeout_s")
    return Load(
        shape=shaped(options["workload"], options["prompt_tokens"], options["new_tokens"], options["spread"]),
        trace=read_trace_file(options["trace"]) if options["trace"] else (),
        arrivals=options["arrivals"],
        rate_per_s=options["rate"],
        requests=options["requests"] or (MAX_REQUESTS if bounded else requests),
        **{name: options[name] for name in taken},
    )


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """What a result has to share with another to be compared; as JSON has it."""
    left_out = ("url", "model", "out", "html", "as_json", "ca", "seed", "repeats")
    plain = {name: value for name, value in options.items() if name not in left_out and value is not None}
    found = {name: value.value if isinstance(value, Enum) else value for name, value in plain.items()}
    return found | {"rate": str(options["rate"])} | ({"trace": options["trace"].name} if options["trace"] else {})


def _measured(
    target: Target, asking: Asking, load: Load, seeds: range, warm_up: int, slo: Slo, settings: dict[str, Any]
) -> Result:
    import asyncio

    from tandem.cli.bench_serve.document import result_of
    from tandem.cli.bench_serve.run import measure
    from tandem.cli.bench_serve.show import progress_bar

    with progress_bar(len(seeds)) as changed:
        repeats = asyncio.run(measure(target, asking, load, seeds, warm_up, changed))
    scheme = "https" if target.tls else "http"
    where = {"url": f"{scheme}://{target.host}:{target.port}{target.prefix}", "api": target.api.value}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return result_of({**where, "model": asking.model}, settings, made, repeats, slo)


def write_result(result: Result, out: Path | None, html: Path | None) -> None:
    """As JSON and as a page, where these are wanted."""
    from tandem.cli.bench_serve.document import to_json
    from tandem.cli.bench_serve.html import page

    for path, text in ((out, to_json), (html, page)):
        if path is not None:
            path.write_text(text(result), encoding="utf-8")


def _keep(result: Result, out: Path | None, html: Path | None, as_json: bool) -> None:
    from tandem.cli.bench_serve.document import to_json
    from tandem.cli.bench_serve.show import show_result

    write_result(result, out, html)
    if as_json:
        print(to_json(result), end="")
    else:
        show_result(result)
