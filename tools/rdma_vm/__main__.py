"""A virtual machine with real RDMA verbs, for machines that have none.

    python -m tools.rdma_vm setup
    python -m tools.rdma_vm run -- ibv_devinfo
    python -m tools.rdma_vm run --results out -- bash -c 'ib_write_bw -d rxe0 > $TANDEM_RDMA_VM_RESULTS/bw & ...'

The command runs in the current folder of this machine's own file system; what it writes is lost, but for --results.
Status 124 means that the time was over, 125 that the guest gave no status, 2 that it could not be started.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from tools.rdma_vm import fetch, guest, newest
from tools.rdma_vm.kit import Kit, RdmaVmError
from tools.rdma_vm.settings import default_directory

STATUS_NOT_STARTED = 2


def arguments() -> argparse.Namespace:
    """The command line."""
    usual = guest.Machine()
    parser = argparse.ArgumentParser(
        prog="python -m tools.rdma_vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir", type=Path, default=default_directory(), help="where what is fetched is kept: %(default)s"
    )
    commands = parser.add_subparsers(dest="do", required=True)
    commands.add_parser("setup", help="fetch what a guest needs, once")
    commands.add_parser("newest", help="build the newest pyverbs, once, and print the variables that make it be found")
    run = commands.add_parser("run", help="run a command in a guest")
    run.add_argument("--memory-mib", type=int, default=usual.memory_mib, help="default %(default)s")
    run.add_argument("--cpus", type=int, default=usual.cpus, help="default %(default)s")
    run.add_argument("--timeout-s", type=float, default=usual.timeout_s, help="the guest's longest life; %(default)s")
    run.add_argument(
        "--results", type=Path, help="a folder that the guest may write; see TANDEM_RDMA_VM_RESULTS inside"
    )
    run.add_argument("--node", type=int, choices=(1, 2), help="be one of two guests that are joined by --cable")
    run.add_argument("--cable", type=Path, help="a folder that both guests name")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="a program and its arguments, after --")
    chosen = parser.parse_args()
    if chosen.do == "run" and (chosen.node is None) != (chosen.cable is None):
        parser.error("--node and --cable go together")
    return chosen


def start(chosen: argparse.Namespace) -> int:
    """Runs the chosen command in a guest."""
    kit = Kit.of(chosen.dir.absolute())
    if not kit.is_set_up():
        raise RdmaVmError("nothing is set up yet; run: python -m tools.rdma_vm setup")
    for folder in filter(None, (chosen.results, chosen.cable)):
        folder.mkdir(parents=True, exist_ok=True)
    node = guest.Node(chosen.node, chosen.cable) if chosen.node else None
    machine = guest.Machine(chosen.memory_mib, chosen.cpus, chosen.timeout_s, chosen.results, node)
    return guest.run(kit, chosen.command, machine)


def stop(number: int, _frame: FrameType | None) -> None:
    """Ends this process on a signal in good order, so that the guest ends first."""
    sys.exit(128 + number)


def main() -> int:
    """Entry point."""
    chosen = arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        if chosen.do == "setup":
            print(fetch.ensure(chosen.dir.absolute()).folder)
            return 0
        if chosen.do == "newest":
            found = newest.variables(newest.ensure(chosen.dir.absolute()))
            print(*(f"{name}={value}" for name, value in found.items()))
            return 0
        return start(chosen)
    except RdmaVmError as error:
        print(f"rdma_vm: {error}", file=sys.stderr)
        return STATUS_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
