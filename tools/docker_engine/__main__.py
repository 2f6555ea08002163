"""A Docker engine for tests, on machines that have none.

    python -m tools.docker_engine ensure     # use the one that answers; else install what is lacking and start one
    python -m tools.docker_engine install    # install what is lacking, as root on Debian 12 or newer
    python -m tools.docker_engine status     # whether one answers, and whether this tool started it
    python -m tools.docker_engine stop       # end the one that this tool started, and what it did to the network

`ensure` leaves the engine running. Images and containers stay in --dir for the next start.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.docker_engine import engine, install
from tools.docker_engine.programs import DockerEngineError
from tools.docker_engine.settings import default_directory


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.docker_engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=default_directory(), help="where it keeps everything: %(default)s")
    parser.add_argument("--left", action="store_true", help="stop only one that tests have left behind")
    parser.add_argument("do", choices=("ensure", "install", "status", "stop"))
    return parser.parse_args()


def status(directory: Path) -> str:
    """One line for a person."""
    started = engine.Started.read(directory)
    ours = started is not None and started.runs()
    if not engine.answers():
        return "no engine with Compose and buildx answers"
    return f"an engine answers, started by this tool as process {started.pid}" if ours and started else "one answers"


def main() -> int:
    """Entry point."""
    chosen = arguments()
    directory = chosen.dir.absolute()
    try:
        match chosen.do:
            case "ensure":
                engine.ensure(directory)
                print(status(directory))
            case "install":
                install.install()
            case "status":
                print(status(directory))
            case "stop":
                print("ended" if engine.stop(directory, only_left=chosen.left) else "there is none to end")
    except DockerEngineError as error:
        print(f"docker_engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
