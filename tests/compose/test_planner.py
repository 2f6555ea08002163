"""`tandem planner` beside a system in containers, by the lines of docs/planner.md: a worker changes its role."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.support.docker.clients import asking
from tests.support.docker.cluster import Cluster
from tests.support.docker.stack import ROOT, Stack, running
from tests.support.faults.load import Outcome
from tests.support.mock.oracle import Oracle
from tests.support.planner_process import QUICK, line_with, planner_process

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(900)]

SLOW_PREFILL = """\
services:
  prefill-mock: { environment: { TANDEM_MOCK_PREFILL_US_PER_TOKEN: "4000" } }
"""
"""A prompt takes a quarter of a second, so that the clients keep one prefill worker busy."""
CLIENTS, MORE = 8, 24


@pytest.fixture
def stack(images: None, tmp_path: Path) -> Iterator[Stack]:
    """One prefill worker, which is slow, two decode workers, and two gateways, of which the planner is to keep both."""
    (tmp_path / "slow.yml").write_text(SLOW_PREFILL)
    files = f"{ROOT / 'docker-compose.yml'}:{tmp_path / 'slow.yml'}"
    with running(Stack(COMPOSE_FILE=files), decode=2, gateway=2) as stack:
        yield stack


def lines_of_the_document(folder: Path) -> str:
    """Those for Docker compose, for the profile of the test, and with files in its folder."""
    text = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    section = text.partition("## Docker compose\n")[2].partition("\n## ")[0]
    lines = "\n".join(line.strip() for line in section.splitlines() if line.startswith("    "))
    for theirs, ours in (
        (".run", str(folder)),
        ("--apply deploy/scale.sh", '--apply "deploy/scale.sh mock"'),
        ("tandem planner", "exec tandem planner"),
    ):
        assert theirs in lines
        lines = lines.replace(theirs, ours)
    return lines


def planner(stack: Stack, folder: Path) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """By these lines."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{stack.env['PATH']}"
    env = {**stack.env, **QUICK, "COMPOSE_PROJECT_NAME": stack.project, "PATH": path}
    return planner_process("sh", "-euc", lines_of_the_document(folder), env=env)


async def test_a_worker_in_a_container_changes_its_role_and_no_answer_is_lost(
    stack: Stack, tmp_path: Path, oracle: Oracle
) -> None:
    assert shutil.which("tandem", path=str(Path(sys.executable).parent)), "the document's command is installed"
    cluster = Cluster.of(stack, tmp_path)
    before = await cluster.members(3)
    async with asking(stack.gateways, oracle, seed=3, count=CLIENTS) as clients, planner(stack, tmp_path) as process:
        assert "decode to prefill, to have 1 decode, 2 prefill" in await line_with(process, "move a worker")
        view = await cluster.wait_view(
            lambda view: sorted(name.partition("-")[0] for name in view.workers) == ["decode", "prefill", "prefill"]
        )
        assert not any(info.draining for info in view.workers.values()), "who was drained is who has ended"
        (new,) = set(view.workers) - set(before)
        (gone,) = set(before) - set(view.workers)
        assert (new.partition("-")[0], gone.partition("-")[0]) == ("prefill", "decode")
        await clients.more(MORE)
        after = await cluster.members(3)
    assert {name for name, one in after.items() if one.status and one.status.submitted} == set(after)
    assert [len(stack.containers(name)) for name in ("prefill-mock", "decode-mock", "gateway")] == [2, 1, 2]
    assert not clients.failures(), clients.failures()
    assert clients.count(Outcome.ANSWERED) == len(clients.ended)
