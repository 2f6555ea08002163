"""All four services over verbs, with the mock engine: many requests at once, and faults; every answer is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.faults.cells import Fault, Moment, Victim, cells
from tests.support.faults.matrix import run_matrix
from tests.support.rdma.serving import verbs_options, verbs_stage
from tests.support.system.asking import generate_all
from tests.support.system.mock_oracle import PAGE_BYTES, PAGE_SIZE, tiny_oracle
from tests.support.system.system import is_idle, running_system

pytestmark = [pytest.mark.rdma, pytest.mark.long]

REQUESTS = 200
NEW_TOKENS = 4
LONGEST = 96
"""Tokens of a prompt; chunks have 32."""
START_TIMEOUT_S = 400
"""An emulated processor imports for a long time."""
PATIENT_S = 300


@pytest.mark.timeout(600)
async def test_two_by_two_answer_200_requests_at_once(tmp_path: Path) -> None:
    dice = random.Random(1)
    prompts = [[dice.randrange(3, 1000) for _ in range(dice.randint(1, LONGEST))] for _ in range(REQUESTS)]
    oracle = tiny_oracle()
    options = ("--engine", "mock", "--ratio", "2:2", "--provider", "verbs", "--engine-arg", "chunk_tokens=32")
    with running_system(tmp_path, *options, *verbs_options(), start_timeout_s=START_TIMEOUT_S) as system:
        async with system.client(PATIENT_S) as client:
            answers = await generate_all(client, prompts, NEW_TOKENS, at_once=REQUESTS)
        statuses = await system.wait_idle()
    assert [one.tokens for one in answers] == [oracle.predict(prompt, NEW_TOKENS).tokens for prompt in prompts]
    for name, status in statuses.items():
        assert is_idle(status), (name, status)
        assert status.submitted > 0, name
        assert {link.partition("=")[2] for link in status.links} == {"verbs"}, (name, status.links)
    pages = sum(-(-len(prompt) // PAGE_SIZE) for prompt in prompts)
    for role in ("prefill", "decode"):
        moved = sum(status.kv_bytes for name, status in statuses.items() if name.startswith(role))
        assert moved == pages * PAGE_BYTES


VERBS_CELLS = list(cells(["verbs"], [Moment.MID_TRANSFER], [Victim.PREFILL, Victim.DECODE]))


@pytest.mark.timeout(2_400)
def test_faults_in_mid_transfer_over_verbs(tmp_path: Path) -> None:
    findings = list(run_matrix(VERBS_CELLS, tmp_path, make_stage=verbs_stage))
    assert not {str(finding): finding.problems for finding in findings if finding.problems}
    assert len(findings) == len(Fault) * 2
