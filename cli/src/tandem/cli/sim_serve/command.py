"""`tandem sim serve`: its options. What takes long to import comes with the call."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tandem.cli.bench_serve.choices import Arrivals, WorkloadName
from tandem.cli.bench_serve.command import load_of, write_result
from tandem.cli.bench_serve.options import (
    MAX_TOKENS,
    MaxNewTokens,
    MaxPromptTokens,
    NewTokens,
    PromptTokens,
    Spread,
)
from tandem.core.ids import Role
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
from tandem.rpc.exits import ExitCode

NO_LIMIT: Final = 1 << 40
Unified = Annotated[
    int, typer.Option(min=0, max=10_000, help="Unified workers: beside those two where they are said, else alone.")
]
ShortPrompt = Annotated[int, typer.Option(min=0, help="Beside pairs, longest prompt that goes to them first.")]
Progress = Annotated[
    bool, typer.Option("--progress", help="Say on stderr how far it is. Ctrl-C ends it early, with a report.")
]

if TYPE_CHECKING:
    from tandem.cli.bench_serve.document import Result
    from tandem.cli.sim_serve.cluster import ClusterPlan, Run


def register(sim: typer.Typer) -> None:
    """Adds the command."""
    sim.command("serve")(serve)


def serve(
    prefill: Annotated[int | None, typer.Option(min=0, max=10_000, help="Prefill workers; default: 1.")] = None,
    decode: Annotated[int | None, typer.Option(min=0, max=10_000, help="Decode workers; default: 1.")] = None,
    unified: Unified = 0,
    unified_max_prompt_tokens: ShortPrompt = DEFAULT_UNIFIED_MAX_PROMPT_TOKENS,
    costs: Annotated[Path | None, typer.Option(help="What engines and links cost; default: as the mock.")] = None,
    prefill_policy: Annotated[str, typer.Option(help="How a prefill worker is chosen.")] = "least_load",
    decode_policy: Annotated[str, typer.Option(help="How a decode or unified worker is chosen.")] = "least_load",
    tenants: Annotated[
        Path | None, typer.Option(help="Who asks: the gateway's file, with shares: docs/simulator.md.")
    ] = (None),
    max_concurrent: Annotated[
        int, typer.Option(min=0, help="Sequences that the gateway lets run at once; 0: all.")
    ] = 0,
    max_queued: Annotated[int, typer.Option(min=0, help="Requests that wait there; more are refused.")] = NO_LIMIT,
    max_queued_tokens: Annotated[int, typer.Option(min=1, help="Tokens of those.")] = NO_LIMIT,
    decode_commit: Annotated[float, typer.Option(min=0, help="How often decode's pages are given away; 0: any.")] = 1.0,
    queue_patience_ms: Annotated[int, typer.Option(min=0, help="How long others overtake what does not fit.")] = 2000,
    workload: Annotated[WorkloadName, typer.Option(help="What is asked: docs/bench.md.")] = WorkloadName.RANDOM,
    trace: Annotated[Path | None, typer.Option(help="Replay this instead: Mooncake's JSON lines, Azure's CSV.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, max=1000, help="How much faster to replay the trace.")] = 1.0,
    arrivals: Annotated[Arrivals, typer.Option(help="How requests come.")] = Arrivals.POISSON,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second; inf: all at once.")] = 4.0,
    requests: Annotated[int | None, typer.Option(min=1, max=100_000_000, help="Of a repeat; default: 1000.")] = None,
    duration_s: Annotated[float, typer.Option(min=0, help="Ask for so long; 0: no bound.")] = 0,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    spread: Spread = None,
    max_prompt_tokens: MaxPromptTokens = MAX_TOKENS,
    max_new_tokens: MaxNewTokens = MAX_TOKENS,
    planner: Annotated[bool, typer.Option("--planner", help="Workers change roles by load: docs/planner.md.")] = False,
    rooms: Annotated[
        bool, typer.Option("--rooms", help="Run each request's room by the protocol's own machines; check its end.")
    ] = False,
    progress: Progress = False,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Of everything, each with a seed of its own.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=1 << 32, help="Of the first repeat.")] = 0,
    slo: Annotated[str, typer.Option(help="Limits of goodput, e.g. ttft=1s,itl=50ms; tpot, e2e too.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the result here, as `bench serve --out` does.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """How fast a cluster of any size would serve the load of `bench serve`, on a virtual clock and without engines."""
    options = dict(locals())
    from tandem.cli.bench_serve.numbers import parse_slo
    from tandem.cli.bench_serve.run import MAX_REQUESTS, streamed
    from tandem.cli.sim_serve.clients import ANYBODY, read_clients, sender
    from tandem.cli.sim_serve.cluster import Cluster
    from tandem.cli.sim_serve.progress import Teller
    from tandem.cli.sim_serve.report import ask_of, result_of_runs

    limits, plan, load = (
        parse_slo(slo),
        _plan(options),
        load_of(options | {"max_in_flight": MAX_REQUESTS, "timeout_s": float("inf")}, 1000),
    )
    clients = read_clients(tenants) if tenants else (ANYBODY,)
    began, runs = time.process_time(), []
    for number in range(seed, seed + repeats):
        client, teller = sender(clients, number), Teller(load.requests, aloud=progress)
        asks = (ask_of(one, client()) for one in streamed(load, number)[0])
        runs.append((number, Cluster(plan).run(teller.each(asks))))
    took_s = time.process_time() - began
    where = {"url": f"simulated: {_size(plan)}", "api": "sim", "model": options["costs"].name if costs else "mock"}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    result = result_of_runs(where, _settings(options), made, runs, limits)
    write_result(result, out, html)
    _show(result, [run for _, run in runs], took_s, as_json)
    raise typer.Exit(ExitCode.FAILED if any(run.rooms and run.rooms.not_ended for _, run in runs) else ExitCode.OK)


def _plan(options: dict[str, Any]) -> ClusterPlan:
    from tandem.cli.planner.costs import costs_by
    from tandem.cli.sim.sides import Machines
    from tandem.cli.sim_serve.cluster import ClusterPlan
    from tandem.cli.sim_serve.door import Doorkeeping
    from tandem.cli.sim_serve.model_file import CostModel, read_model
    from tandem.cli.sim_serve.steering import Steering
    from tandem.core.fair_queue import QueueLimits
    from tandem.core.policies import policy_named

    model = read_model(options["costs"]) if options["costs"] else CostModel()
    policies = {
        Role.PREFILL: policy_named(options["prefill_policy"]),
        Role.DECODE: policy_named(options["decode_policy"]),
        Role.UNIFIED: policy_named(options["decode_policy"]),
    }
    unsaid = 0 if options["unified"] else 1
    prefill, decode = (unsaid if options[name] is None else options[name] for name in ("prefill", "decode"))
    limits = QueueLimits(
        options["max_concurrent"] or NO_LIMIT,
        options["max_queued"],
        options["max_queued_tokens"],
        options["queue_patience_ms"] / 1000,
    )
    return ClusterPlan(
        prefill=prefill,
        decode=decode,
        unified=options["unified"],
        unified_max_prompt_tokens=options["unified_max_prompt_tokens"],
        costs=model.engine,
        link=model.link,
        shape=model.shape,
        gateway=model.gateway,
        policies=policies,
        rooms=Machines() if options["rooms"] else None,
        keeping=Doorkeeping(limits, options["decode_commit"]),
        seed=options["seed"],
        steering=Steering(costs=costs_by(model)) if options["planner"] else None,
    )


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The load, under the names of `bench serve`."""
    left_out = (
        "out",
        "html",
        "as_json",
        "seed",
        "repeats",
        "prefill",
        "decode",
        "unified",
        "unified_max_prompt_tokens",
        "costs",
        "trace",
        "tenants",
        "rooms",
        "progress",
    )
    plain = {name: value for name, value in options.items() if name not in left_out and value is not None}
    found = {name: value.value if isinstance(value, Enum) else value for name, value in plain.items()}
    return found | {"rate": str(options["rate"])} | ({"trace": options["trace"].name} if options["trace"] else {})


def _size(plan: ClusterPlan) -> str:
    sizes = {"prefill": plan.prefill, "decode": plan.decode, "unified": plan.unified}
    return ", ".join(f"{count} {name}" for name, count in sizes.items() if count)


def _show(result: Result, runs: list[Run], took_s: float, as_json: bool) -> None:
    from tandem.cli.bench_serve.document import to_json
    from tandem.cli.bench_serve.show import show_result

    if as_json:
        print(json.dumps(json.loads(to_json(result)) | {"busy": [dict(run.busy) for run in runs]}))
        return
    show_result(result)
    for run in runs:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in run.busy.items())
        for at_s, advice in run.changes:
            print(
                f"{at_s:.0f} s: {advice.change.value} {' to '.join(r.value for r, _ in advice.steps)}: {advice.reason}"
            )
        print(f"{result.target['url']}: busy {shares}; {run.ended_s:.1f} s of virtual time")
        if run.rooms is not None:
            one = run.rooms
            print(
                f"rooms: {one.opened} opened, {one.ended_well} ended well on both sides, {one.ended_badly} badly at"
                f" their deadline, {one.not_ended} did not end; {one.steps} steps"
            )
    requests = sum(run.totals.answered for run in runs)
    print(f"{requests} requests in {took_s:.1f} s of CPU: {requests / took_s * 60:,.0f} per minute")
