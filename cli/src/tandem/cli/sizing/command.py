"""`tandem plan`: its options. What takes long to import comes with the call."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tandem.cli.bench_serve.choices import Arrivals, WorkloadName
from tandem.cli.bench_serve.command import load_of
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
    from tandem.cli.sim_serve.model_file import CostModel
    from tandem.cli.sizing.goodput import Question
    from tandem.cli.sizing.report import Report
    from tandem.cli.sizing.sample import Sample
    from tandem.cli.sizing.search import Space

MAX_WORKERS: Final = 64
_NOT_SETTINGS: Final = ("html", "costs", "compose", "as_json", "processes", "trace", "calibrated")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("plan")(plan)


def plan(
    model: Annotated[str, typer.Option(help="A checkpoint's folder, or its config.json.")] = "",
    gpu: Annotated[str, typer.Option(help="A100-80, H100, H200, L40S or L4.")] = "",
    slo: Annotated[str, typer.Option(help="What a request has to keep; tpot, e2e too.")] = "ttft=1s,itl=50ms",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the requests, so many have to.")] = 0.9,
    workers: Annotated[str, typer.Option(help="How many in all: 8, or 2-8.")] = "8",
    tp: Annotated[int, typer.Option(min=1, max=64, help="GPUs of each worker.")] = 1,
    rate: Annotated[
        float,
        typer.Option(min=0, help="Requests per second to serve, with as few workers as can; 0: as many as can be."),
    ] = 0,
    policies: Annotated[
        str,
        typer.Option(
            help="To try, the first with every split; default: those that this load gives something to go by."
        ),
    ] = "",
    page_sizes: Annotated[str, typer.Option(help="Tokens per KV page, to try.")] = "16,1,64",
    deep: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Best splits to try all of these with.")] = 3,
    mixed: Annotated[bool, typer.Option(help="Try unified workers beside pairs, too.")] = True,
    calibrated: Annotated[
        Path | None, typer.Option(help="Measured costs in place of a datasheet's: a file of `tandem calibrate`.")
    ] = None,
    gpu_price_per_hour: Annotated[float, typer.Option(min=0, help="Of one GPU, in any currency.")] = 0,
    link_gbytes_per_s: Annotated[
        float, typer.Option(min=0.001, help="Between workers, each way; 25: a port of 200 Gbit/s for each.")
    ] = 25.0,
    max_running: Annotated[int, typer.Option(min=1, max=65_536, help="Sequences that a worker runs at once.")] = 256,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens that are computed at once.")] = 8192,
    workload: Annotated[WorkloadName, typer.Option(help="What is asked: docs/bench.md.")] = WorkloadName.RANDOM,
    trace: Annotated[Path | None, typer.Option(help="This instead: Mooncake's JSON lines, Azure's CSV.")] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="How requests come, without a trace.")] = Arrivals.POISSON,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    spread: Spread = None,
    max_prompt_tokens: MaxPromptTokens = MAX_TOKENS,
    max_new_tokens: MaxNewTokens = MAX_TOKENS,
    requests: Annotated[int, typer.Option(min=20, max=100_000, help="Of each run; more are surer and slower.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=1 << 32, help="Of the requests and of the policies' dice.")] = 0,
    processes: Annotated[int, typer.Option(min=0, max=64, help="That search; 0: one for each core.")] = 0,
    model_path: Annotated[str, typer.Option(help="What workers are to load; default: --model.")] = "",
    compose: Annotated[Path | None, typer.Option(help="Write a file for Compose here, beside its own.")] = None,
    costs: Annotated[Path | None, typer.Option(help="Write the costs here, for `tandem sim serve --costs`.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Searches, by simulation, how many prefill and decode workers serve most requests within an SLO."""
    options = dict(locals())
    from tandem.cli.bench_serve.numbers import parse_slo
    from tandem.cli.settings import available_cores
    from tandem.cli.sizing.goodput import Question
    from tandem.cli.sizing.report import Report, document
    from tandem.cli.sizing.search import search
    from tandem.cli.sizing.show import show, workforce

    limits, sample = parse_slo(slo), _sample(options)
    question = Question(_costs(options, sample), sample, limits, share, seed)
    space, began = _space(options, question), time.monotonic()
    with workforce(processes or available_cores()) as each:
        outcome = search(question, space, each)
    took_s = time.monotonic() - began
    title = f"{model or 'a model'} on {gpu or 'what was measured'}, {tp} GPU{'s' * (tp > 1)} a worker"
    found = Report(title, question, outcome, _settings(options), tp, gpu_price_per_hour, rate)
    report = _with_lines(found, options)
    _keep(report, html, costs)
    if as_json:
        print(json.dumps(document(report), indent=2))
    else:
        show(report, took_s)
    raise typer.Exit(ExitCode.OK if report.best else ExitCode.FAILED)


def _keep(report: Report, html: Path | None, costs: Path | None) -> None:
    """As a page, and as a file of costs, where these are wanted."""
    from tandem.cli.sim_serve.model_file import to_json
    from tandem.cli.sizing.report import page

    if html is not None:
        html.write_text(page(report, datetime.now(UTC).isoformat(timespec="seconds")), encoding="utf-8")
    if costs is not None:
        costs.write_text(to_json(report.question.model), encoding="utf-8")


def _sample(options: dict[str, Any]) -> Sample:
    from tandem.cli.bench_serve.run import MAX_REQUESTS
    from tandem.cli.sizing.sample import sample_of

    fixed = {"rate": 1.0, "speed": 1.0, "duration_s": 0, "max_in_flight": MAX_REQUESTS, "timeout_s": float("inf")}
    return sample_of(load_of(options | fixed, options["requests"]), options["seed"], options["requests"])


def _costs(options: dict[str, Any], sample: Sample) -> CostModel:
    from tandem.cli.sim_serve.model_file import read_model
    from tandem.cli.sizing.datasheet import Worker, costs_of
    from tandem.cli.sizing.gpus import gpu_named
    from tandem.cli.sizing.models import read_shape

    if options["calibrated"]:
        found = read_model(options["calibrated"])
        if found.shape.kv_tokens < sample.longest_tokens:
            raise _bad(
                "calibrated",
                f"a request of {sample.longest_tokens:,} tokens never fits the {found.shape.kv_tokens:,} of a worker; "
                "--max-prompt-tokens and --max-new-tokens cut it",
            )
        return found
    if not options["model"] or not options["gpu"]:
        raise _bad("model", "--model and --gpu are needed, or --calibrated with measured costs")
    worker = Worker(
        gpu_named(options["gpu"]),
        read_shape(options["model"]),
        options["tp"],
        options["link_gbytes_per_s"],
        options["max_running"],
        options["chunk_tokens"],
    )
    return costs_of(worker, sample.longest_tokens)


def _space(options: dict[str, Any], question: Question) -> Space:
    from tandem.cli.sizing.candidates import policy_for, usual_policies
    from tandem.cli.sizing.search import Space

    load = {"shared": question.shared, "sessions": question.sessions}
    names = [name.strip() for name in options["policies"].split(",") if name.strip()]
    first, _, last = options["workers"].partition("-")
    low, high = _whole("workers", first, MAX_WORKERS), _whole("workers", last or first, MAX_WORKERS)
    if low > high:
        raise _bad("workers", f"--workers {options['workers']!r} is not like 8 or 2-8")
    pages = [_whole("page_sizes", text, 65_536) for text in options["page_sizes"].split(",")]
    policies = list(dict.fromkeys(policy_for(name, **load) for name in names)) or usual_policies(**load)
    return Space(range(low, high + 1), policies, list(dict.fromkeys(pages)), options["deep"], options["mixed"])


def _whole(name: str, text: str, most: int) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise _bad(name, f"--{name.replace('_', '-')}: {text!r} is not allowed: a whole number, 1..{most}")
    return int(text)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in options.items() if name not in _NOT_SETTINGS and value is not None}
    found = {name: value.value if isinstance(value, Enum) else value for name, value in plain.items()}
    files = {name: options[name].name for name in ("trace", "calibrated") if options[name]}
    return found | files


def _with_lines(report: Report, options: dict[str, Any]) -> Report:
    """With how to start the winner, if there is one; writes the file for Compose where that is wanted."""
    from dataclasses import replace

    from tandem.cli.sizing.advice import Setup, compose_file, compose_line, up_line

    best, shape = report.best, report.question.model.shape
    if best is None:
        return report
    path = options["model_path"] or _loadable(options["model"])
    setup = Setup(
        best.candidate, path, report.gpus_per_worker, shape.max_running, shape.chunk_tokens, Path(path).is_dir()
    )
    gpus = best.workers * report.gpus_per_worker
    lines = {f"On one machine with {gpus} GPU{'s' * (gpus > 1)}": up_line(setup)}
    file = options["compose"]
    if file is not None and (text := compose_file(setup)):
        file.write_text(text, encoding="utf-8")
        lines[f"In containers, with {file} beside docker-compose.yml"] = compose_line(setup, file.name)
    elif file is not None:
        lines["In containers"] = "docker-compose.yml has no unified workers on GPUs"
    return replace(report, lines=lines)


def _loadable(model: str) -> str:
    """What workers load where only --model is said: the folder of a config.json; of any other file we don't know."""
    path = Path(model)
    if model and path.is_file():
        return str(path.parent) if path.name == "config.json" else "MODEL"
    return model or "MODEL"


def _bad(name: str, text: str) -> TandemError:
    return TandemError(ErrorReason.INVALID_ARGUMENT, text, field=name)
