"""Mutated requests and messages against a system with the mock engine: `python -m benchmarks.fuzz --seed 1`.

Exit code 0: no answer of the 500s without a reason, no crash, no leak, and all good requests in between answered right.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from pathlib import Path

from tests.support.fuzz.campaign import Campaign
from tests.support.system.mock_oracle import tiny_oracle
from tests.support.system.system import running_system

SMALL = ("--env", "gateway:TANDEM_GATEWAY_DEFAULT_MAX_TOKENS=8")


def main(arguments: list[str] | None = None) -> int:
    """Runs one campaign and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which it ends, also with fewer")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, running_system(Path(folder), "--engine", "mock", *SMALL) as system:
        began = time.monotonic()
        report = asyncio.run(Campaign(system, tiny_oracle(), given.seed).run(given.count, given.seconds))
        seconds = time.monotonic() - began
    print(f"sent {dict(report.sent)} in {seconds:.0f} s; statuses {dict(sorted(report.statuses.items()))}")
    print("grown by, MiB:", {name: grown >> 20 for name, grown in report.growth.items()})
    print(f"problems: {len(report.problems)}", *report.problems[:40], sep="\n")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
