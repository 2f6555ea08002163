"""Command line of `tandem bench gateway`."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tandem.cli import settings
from tandem.cli.bench_gateway import peer_venv, report, routing, scenarios
from tandem.cli.bench_gateway.figures import Figures
from tandem.cli.bench_gateway.scenarios import Field, Sizes, say
from tandem.core.errors import TandemError

Scenario = Callable[[Field, Sizes, Figures], Awaitable[None]]
SCENARIOS: Final[dict[str, Scenario]] = {
    "requests": scenarios.requests,
    "streams": scenarios.streaming,
    "idle": scenarios.idle,
    "cancel": scenarios.cancelling,
    "routing": routing.measure,
}
QUICK: Final = Sizes(
    rounds=1,
    paced_requests=20,
    whole_requests=20,
    whole_clients=4,
    streams=(4,),
    stream_tokens=20,
    idle_streams=20,
    cancels=3,
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for."""

    scenarios: tuple[str, ...]
    peers: tuple[str, ...]
    sizes: Sizes
    env: dict[str, str]


async def measure(wishes: Wishes, figures: Figures, folder: Path) -> None:
    """Runs every scenario with every peer that is there."""
    there = []
    for peer in wishes.peers:
        why = peer_venv.missing(peer, folder)
        if why:
            figures.notes.append(f"{peer} is left out: {why}")
            say(figures.notes[-1])
        else:
            there.append(peer)
    field = Field(tuple(there), folder, wishes.env)
    for name in wishes.scenarios:
        await SCENARIOS[name](field, wishes.sizes, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tandem bench gateway", description="The gateway and its peers, each before mock workers, in one run."
    )
    parser.add_argument("--scenarios", nargs="+", choices=[*SCENARIOS], default=[*SCENARIOS], help="default: all")
    parser.add_argument("--peers", nargs="*", choices=peer_venv.PEERS, default=peer_venv.PEERS, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of each scenario that has some (default 5)")
    parser.add_argument("--streams", nargs="+", type=int, default=[50, 200], help="at the same time")
    parser.add_argument("--idle-streams", type=int, default=10_000, help="that are held")
    parser.add_argument("--quick", action="store_true", help="a look at whether all of it works, in seconds")
    parser.add_argument("--install", action="store_true", help="install the peers into an environment of their own")
    parser.add_argument("--pip-arg", action="append", default=[], help="for --install; repeatable")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="a setting of Tandem's side")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--svg", type=Path, help="draw them here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    sizes = QUICK if given.quick else Sizes(given.rounds, streams=tuple(given.streams), idle_streams=given.idle_streams)
    if sizes.rounds < 1 or min(sizes.streams) < 1 or sizes.idle_streams < 1:
        parser.error("--rounds, --streams and --idle-streams are at least 1")
    wishes = Wishes(tuple(given.scenarios), tuple(given.peers), sizes, dict(one.split("=", 1) for one in given.env))
    folder, figures = settings.bench_peers_folder(), Figures()
    try:
        if given.install:
            peer_venv.install(folder, given.pip_arg)
        asyncio.run(measure(wishes, figures, folder))
    except (TandemError, subprocess.SubprocessError) as error:
        print(f"tandem bench gateway: {error}", file=sys.stderr)
        return 1
    print(report.tables(figures))
    if given.json:
        document = {"sizes": asdict(sizes), "machine": report.machine(), "notes": figures.notes}
        given.json.write_text(json.dumps(document | {"figures": figures.document()}, indent=1) + "\n")
    if given.svg:
        given.svg.write_text(report.drawing(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
