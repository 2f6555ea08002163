"""A slice of `python -m benchmarks.fuzz`: a thousand mutated requests and messages, and nothing is hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzz.campaign import Campaign
from tests.support.mock.oracle import Oracle
from tests.support.system.system import running_system

SMALL = ("--env", "gateway:TANDEM_GATEWAY_DEFAULT_MAX_TOKENS=8")


async def fuzz(folder: Path, oracle: Oracle, count: int, seed: int) -> None:
    """One campaign; none of what it finds may be a problem."""
    with running_system(folder, "--engine", "mock", *SMALL) as system:
        report = await Campaign(system, oracle, seed).run(count)
    assert not report.problems, report.problems[:20]
    assert {"http", "grpc", "bytes", "good"} <= report.sent.keys()
    assert {"200", "400"} <= report.statuses.keys()


async def test_mutated_requests_hurt_nothing(tmp_path: Path, oracle: Oracle) -> None:
    await fuzz(tmp_path, oracle, 1000, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_many_mutated_requests_hurt_nothing(tmp_path: Path, oracle: Oracle) -> None:
    await fuzz(tmp_path, oracle, 20_000, seed=2)
