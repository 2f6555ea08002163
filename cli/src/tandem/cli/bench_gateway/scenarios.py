"""What is measured. In each round every side is asked in turn; whose turn comes first changes from round to round."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tandem.cli.bench_gateway import processes
from tandem.cli.bench_gateway.figures import MODES, QUICKACK, Figures, percentile
from tandem.cli.bench_gateway.jobs import Job, Kind, Outcome
from tandem.cli.bench_gateway.loads import LoadProcess, load_running
from tandem.cli.bench_gateway.sides import HTTP_LOAD, TANDEM, Engine, Side, closed_ns, peer_side, tandem_side
from tandem.cli.trace import trace_of
from tandem.core.errors import TandemError
from tandem.rpc.credentials import PLAIN as PLAIN_TEXT

HELD_BY_PEERS: Final = 4_000
"""Streams of a peer that are held, at most: it needs two descriptors for each, and may have 20,000 here."""
DIRECT: Final = "without"
LEFT_BEFORE_NS: Final = 5_000_000_000
ENGINE: Final = "engine"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rounds: int = 5
    paced_requests: int = 300
    per_second: float = 100
    whole_requests: int = 1_500
    whole_clients: int = 16
    streams: tuple[int, ...] = (50, 200)
    stream_tokens: int = 200
    step_ms: float = 10
    idle_streams: int = 10_000
    cancels: int = 60

    @property
    def warm(self) -> Sizes:
        """Of the round before the first, which is not counted."""
        return replace(self, paced_requests=20, whole_requests=100, stream_tokens=50)


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part."""

    peers: tuple[str, ...]
    peer_folder: Path
    env: Mapping[str, str]
    """More settings of Tandem's gateway."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One side, and the loads before it."""

    side: Side
    loads: Mapping[str, LoadProcess]
    """By mode, through the gateway."""
    direct: Mapping[str, LoadProcess]
    """By mode, without it; Tandem's has no HTTP and so no modes."""


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def entrants(field: Field, engine: Engine, *, modes: Sequence[str] = MODES) -> AsyncIterator[list[Entrant]]:
    """All sides, started, with their loads."""
    async with AsyncExitStack() as stack:
        found = []
        for name in (TANDEM, *field.peers):
            start = tandem_side(engine, field.env) if name == TANDEM else peer_side(name, engine, field.peer_folder)
            side = await stack.enter_async_context(start)
            loads: dict[str, LoadProcess] = {}
            direct: dict[str, LoadProcess] = {}
            for mode in modes:
                loads[mode] = await stack.enter_async_context(load_running((HTTP_LOAD, side.address, mode)))
                if side.name != TANDEM or not direct:
                    direct[mode] = await stack.enter_async_context(load_running((*side.without, mode)))
                else:
                    direct[mode] = next(iter(direct.values()))
            found.append(Entrant(side, loads, direct))
        yield found


def turns(number: int, everyone: Sequence[Entrant]) -> list[Entrant]:
    """The order of a round."""
    first = number % len(everyone)
    return [*everyone[first:], *everyone[:first]]


@dataclass(frozen=True, slots=True)
class Used:
    """What a job cost, seconds of CPU."""

    outcome: Outcome
    gateway_s: float
    others_s: float


async def metered(entrant: Entrant, load: LoadProcess, job: Job) -> Used:
    """Does a job and sees what it cost."""
    gateway = processes.family(entrant.side.gateway)
    others = [pid for root in entrant.side.others for pid in processes.family(root)]
    before = processes.cpu_s(gateway), processes.cpu_s(others)
    outcome = await load.do(job)
    return Used(outcome, processes.cpu_s(gateway) - before[0], processes.cpu_s(others) - before[1])


async def requests(field: Field, sizes: Sizes, figures: Figures) -> None:
    """What a gateway adds to a request that comes at a quiet moment, and what one costs when many come."""
    async with entrants(field, Engine(step_us=1_000)) as everyone:
        for number in range(-1, sizes.rounds):
            noted, size = (figures, sizes) if number >= 0 else (Figures(), sizes.warm)
            for measure in (_latency_of, _cost_of):
                for entrant in turns(number, everyone):
                    for mode in MODES:
                        await measure(entrant, mode, size, noted)
            say(f"requests: round {number + 1} of {sizes.rounds}")


async def _latency_of(entrant: Entrant, mode: str, sizes: Sizes, figures: Figures) -> None:
    job = Job(
        Kind.PACED,
        model=entrant.side.model,
        connections=16,
        requests=sizes.paced_requests,
        tokens=2,
        per_second=sizes.per_second,
    )
    direct = await entrant.direct[mode].do(job)
    through = await entrant.loads[mode].do(job)
    name = entrant.side.name
    for kind, mine, bare in (
        ("whole", through.whole_ms, direct.whole_ms),
        ("first chunk", through.first_ms, direct.first_ms),
    ):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            there, here = percentile(mine, share), percentile(bare, share)
            figures.add(f"{kind} {label}", name, mode, there, "ms")
            figures.add(f"{kind} {label}, {DIRECT}", name, mode, here, "ms")
            figures.add(f"{kind} {label}, added", name, mode, there - here, "ms")


async def _cost_of(entrant: Entrant, mode: str, sizes: Sizes, figures: Figures) -> None:
    job = Job(
        Kind.WHOLE,
        model=entrant.side.model,
        connections=sizes.whole_clients,
        requests=sizes.whole_requests,
        tokens=2,
    )
    used = await metered(entrant, entrant.loads[mode], job)
    answers, name = used.outcome.answers, entrant.side.name
    figures.add("requests per CPU-second of the gateway", name, mode, answers / used.gateway_s, "1/s")
    figures.add("requests per second", name, mode, answers / used.outcome.wall_s, "1/s")


async def streaming(field: Field, sizes: Sizes, figures: Figures) -> None:
    """What a token of a stream costs, and how evenly tokens come; one token per step and stream."""
    async with entrants(field, Engine(step_us=round(sizes.step_ms * 1000))) as everyone:
        for number in range(-1, sizes.rounds):
            noted, size = (figures, sizes) if number >= 0 else (Figures(), sizes.warm)
            for entrant in turns(number, everyone):
                for mode in MODES:
                    for streams in size.streams:
                        await _streams_of(entrant, mode, streams, size, noted)
            say(f"streams: round {number + 1} of {sizes.rounds}")


async def _streams_of(entrant: Entrant, mode: str, streams: int, sizes: Sizes, figures: Figures) -> None:
    job = Job(Kind.STREAMS, model=entrant.side.model, connections=streams, tokens=sizes.stream_tokens)
    bare = await entrant.direct[mode].do(job)
    used = await metered(entrant, entrant.loads[mode], job)
    outcome, name, at = used.outcome, entrant.side.name, f"{streams} streams"
    everything = used.gateway_s + used.others_s + outcome.cpu_s
    figures.add(f"{at}: tokens per CPU-second of the gateway", name, mode, outcome.tokens / used.gateway_s, "1/s")
    figures.add(f"{at}: CPU per token, gateway", name, mode, used.gateway_s / outcome.tokens * 1e6, "us")
    figures.add(f"{at}: CPU per token, workers", name, mode, used.others_s / outcome.tokens * 1e6, "us")
    figures.add(f"{at}: CPU per token, client", name, mode, outcome.cpu_s / outcome.tokens * 1e6, "us")
    figures.add(f"{at}: CPU per token, all processes", name, mode, everything / outcome.tokens * 1e6, "us")
    figures.add(f"{at}: tokens per second", name, mode, outcome.tokens / outcome.wall_s, "1/s")
    figures.add(f"{at}: tokens per read", name, mode, outcome.tokens / outcome.reads, "")
    for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        there, here = percentile(outcome.gaps_ms, share), percentile(bare.gaps_ms, share)
        figures.add(f"{at}: gap {label}", name, mode, there, "ms")
        figures.add(f"{at}: gap {label}, {DIRECT}", name, mode, here, "ms")
        figures.add(f"{at}: gap {label}, added", name, mode, there - here, "ms")


async def idle(field: Field, sizes: Sizes, figures: Figures) -> None:
    """Memory of streams that wait for their next token, one side after the other."""
    for name in (TANDEM, *field.peers):
        alone = Field((), field.peer_folder, field.env)
        engine = Engine(step_us=100_000_000)
        start = tandem_side(engine, alone.env) if name == TANDEM else peer_side(name, engine, field.peer_folder)
        count = sizes.idle_streams if name == TANDEM else min(sizes.idle_streams, HELD_BY_PEERS)
        async with start as side, load_running((HTTP_LOAD, side.address, QUICKACK)) as load:
            await load.do(Job(Kind.HOLD, model=side.model, connections=min(count, 100), tokens=50))
            gateway = processes.family(side.gateway)
            before = processes.resident_bytes(gateway)
            job = Job(Kind.HOLD, model=side.model, connections=count, tokens=50, timeout_s=180)
            held = await load.do(job)
            grown = processes.resident_bytes(gateway) - before
            figures.add("memory per idle stream", name, QUICKACK, grown / held.answers / 1024, "KiB")
            figures.add("idle streams held", name, QUICKACK, held.answers, "")
        say(f"idle streams: {name}")


async def cancelling(field: Field, sizes: Sizes, figures: Figures) -> None:
    """From a client's leaving until prefill has stopped."""
    engine = Engine(step_us=1_000, prefill_us=400_000, trace_all=True)
    async with entrants(field, engine, modes=(QUICKACK,)) as everyone:
        for entrant in everyone:
            side, load = entrant.side, entrant.loads[QUICKACK]
            if side.workers:
                await closed_ns(side.workers[0])
            job = Job(Kind.LEAVE, model=side.model, requests=sizes.cancels, tokens=20, leave_after_ms=60, pause_ms=60)
            left = (await load.do(job)).left_ns
            took = await (_stopped_by_peer(side, left) if side.workers else _stopped_by_us(side, left))
            figures.add("cancels that reached prefill", side.name, QUICKACK, len(took) / len(left), "")
            if took:
                for label, share in (("p50", 0.5), ("p99", 0.99)):
                    figures.add(
                        f"cancel to prefill stopped {label}", side.name, QUICKACK, percentile(took, share), "ms"
                    )
            say(f"cancels: {side.name}")


async def _stopped_by_us(side: Side, left: Sequence[tuple[int, int]]) -> list[float]:
    """Of each request, ms until prefill's leg had ended, as its trace says."""
    took = []
    for number, (wall_ns, _) in enumerate(left):
        try:
            trace = await trace_of(side.admin, f"leave-{number}", PLAIN_TEXT)
        except TandemError:
            continue
        ends = [span.end_ns for span in trace.spans if span.name == "prefill"]
        if ends:
            took.append((max(ends) - wall_ns) / 1e6)
    return took


async def _stopped_by_peer(side: Side, left: Sequence[tuple[int, int]]) -> list[float]:
    """Of each request that prefill's mock worker saw leaving, ms until it did."""
    await asyncio.sleep(1)
    closed = sorted(await closed_ns(side.workers[0]))
    took = []
    for place, (_, when) in enumerate(left):
        until = left[place + 1][1] if place + 1 < len(left) else when + LEFT_BEFORE_NS
        seen = [one for one in closed if when <= one < until]
        if seen:
            took.append((seen[0] - when) / 1e6)
    return took
