"""`tandem calibrate`: its options. What takes long to import comes with the call."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.cli.authorities import CaFile
from tandem.core.errors import ErrorReason, TandemError

if TYPE_CHECKING:
    from tandem.cli.calibrate.fit import BurstSample, Fit, PromptSample, StepSample
    from tandem.cli.calibrate.probe import ProbePlan


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    out: Annotated[Path, typer.Argument(help="Where to write the costs, for `tandem sim serve --costs`.")],
    url: Annotated[str, typer.Option(help="The gateway; default: the system started from this folder.")] = "",
    model: Annotated[str, typer.Option(help="Model to ask; default: the first.")] = "",
    prompts: Annotated[str, typer.Option(help="Tokens of prompts that come alone.")] = "32,128,512,1024,2048",
    batches: Annotated[str, typer.Option(help="Answers that decode together.")] = "1,4,16",
    contexts: Annotated[str, typer.Option(help="Tokens of the prompts of those.")] = "32,512",
    new_tokens: Annotated[int, typer.Option(min=8, max=2048, help="That each answer makes beside the others.")] = 64,
    burst: Annotated[
        int, typer.Option(min=0, max=64, help="Of the longest prompts, that come at once; 0: none do.")
    ] = 8,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Of each; the median counts.")] = 5,
    kv_bytes_per_token: Annotated[int, typer.Option(min=1, help="KV of a token: `tandem workers --json`.")] = 131_072,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens that prefill computes at once.")] = 8192,
    batch_prompts: Annotated[
        int, typer.Option(min=0, help="Prompts that prefill computes at once; the mock: 1; 0: any.")
    ] = 0,
    kv_tokens: Annotated[int, typer.Option(min=1, help="KV tokens that a decode worker has room for.")] = 1 << 20,
    max_running: Annotated[int, typer.Option(min=1, help="Sequences that a worker runs at once.")] = 256,
    vocabulary: Annotated[int, typer.Option(min=4, help="Token ids are below it.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=1 << 32, help="Of the prompts; another shares nothing.")] = 0,
    ca: CaFile = None,
) -> None:
    """Measures an idle system of one prefill and one decode worker, and writes what they cost."""
    import asyncio

    from tandem.cli.calibrate.fit import fit
    from tandem.cli.calibrate.probe import ProbePlan
    from tandem.cli.sim_serve.costs import WorkerShape
    from tandem.cli.sim_serve.model_file import CostModel, to_json

    sizes = {"prompts": prompts, "batches": batches, "contexts": contexts}
    plan = ProbePlan(
        **{name: _numbers(name, text) for name, text in sizes.items()},
        new_tokens=new_tokens,
        repeats=repeats,
        burst=burst,
    )
    shape = WorkerShape(
        kv_tokens, max_running, chunk_tokens, kv_bytes_per_token=kv_bytes_per_token, batch_prompts=batch_prompts
    )
    found = fit(*asyncio.run(_probe(url, model, vocabulary, plan, seed, ca)), shape)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    source = f"tandem calibrate of {url or 'the system run here'}, {made}"
    out.write_text(to_json(CostModel(found.engine, found.link, shape, source, found.gateway)), encoding="utf-8")
    _show(found, out)


def _numbers(name: str, text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"--{name} {text!r} is not like 1,4,16: whole numbers above 0", field=name
        )
    return found


async def _probe(
    url: str, model: str, vocabulary: int, plan: ProbePlan, seed: int, ca_file: Path | None
) -> tuple[list[PromptSample], list[BurstSample], list[StepSample]]:
    from tandem.cli.bench_serve.apis import body_of
    from tandem.cli.bench_serve.choices import Api
    from tandem.cli.bench_serve.client import ask, resolved
    from tandem.cli.bench_serve.command import asking_of
    from tandem.cli.bench_serve.reading import AnswerReader
    from tandem.cli.bench_serve.workload import Question
    from tandem.cli.calibrate.probe import probe_bursts, probe_prompts, probe_steps

    # It says of each token when it came, also of one whose text waits for the next.
    asking, target = asking_of(url, Api.GENERATE, model, vocabulary, eos=False, ca_file=ca_file)
    target = await resolved(target)

    async def send(question: Question) -> AnswerReader:
        return await ask(target, body_of(asking, question), timeout_s=600)

    prompts = await probe_prompts(plan, send, seed)
    return prompts, await probe_bursts(plan, send, seed), await probe_steps(plan, send, seed)


def _between(gap_us: Sequence[float]) -> str:
    low, high = (gap_us[len(gap_us) * share // 100] / 1000 if gap_us else 0.0 for share in (10, 90))
    return f"{low:+.1f} to {high:+.1f} ms beside their steps (p10 to p90)"


def _show(found: Fit, out: Path) -> None:
    engine, link = found.engine, found.link
    print(
        f"prefill  {engine.prefill_us_per_batch:,.0f} us + {engine.prefill_us_per_token:,.2f} us per token"
        f" + {engine.prefill_ns_per_pair:,.3f} ns per pair; {found.prefill_error:.1%} off\n"
        f"step     {engine.step_us:,.0f} us + {engine.step_us_per_sequence:,.1f} us per sequence"
        f" + {engine.step_ns_per_token:,.2f} ns per token of KV; {found.step_error:.1%} off\n"
        f"link     {link.us_per_chunk:,.0f} us per chunk, {link.gbytes_per_s:,.2f} GB/s; {found.link_error:.1%} off\n"
        f"gateway  {found.gateway.us_per_request:,.0f} us per request; gaps {_between(found.gateway.gap_us)}\n"
        f"written to {out}"
    )
