"""All four services over verbs, with the mock engine: many requests at once, and faults; every answer is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.faults.cells import Fault, Moment, Victim, cells
from tests.support.faults.matrix import run_matrix
from tests.support.rdma.serving import verbs_options, verbs_stage
from tests.support.system.asking import generate, generate_all
from tests.support.system.conversation import NEW_TOKENS as TURN_TOKENS
from tests.support.system.conversation import converse, counted, held_of, pages
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


TALK = (70, 8, 53)
"""Tokens that the client adds in each turn."""


@pytest.mark.timeout(1_200)
async def test_of_a_conversation_only_what_decode_lacks_moves(tmp_path: Path) -> None:
    """Each turn's new part moves; of the last prompt once more only the page that it does not fill."""
    options = ("--engine", "mock", "--provider", "verbs", "--keep-prefixes", "--engine-arg", "chunk_tokens=32")
    with running_system(tmp_path, *options, *verbs_options(each=1), start_timeout_s=START_TIMEOUT_S) as system:
        async with system.client(PATIENT_S) as client:
            turns = await converse(client, TALK)
            last = turns[-1][0]
            again = await generate(client, last, TURN_TOKENS, ignore_eos=True)
        moved, kept = await counted(system)
        links = {link.partition("=")[2] for status in (await system.statuses()).values() for link in status.links}
    assert links == {"verbs"}
    oracle = tiny_oracle()
    for talk, answer in [*turns, (last, again)]:
        assert answer.tokens == oracle.predict(talk, TURN_TOKENS, ignore_eos=True).tokens
    asked = sum(pages(len(talk)) for talk in [*(talk for talk, _ in turns), last])
    held = [*held_of(turns), len(last) // PAGE_SIZE]
    assert 0 == held[0] < held[1] < held[2] < held[3] < pages(len(last))
    assert (moved, kept) == (asked - sum(held), sum(held))


VERBS_CELLS = list(cells(["verbs"], [Moment.MID_TRANSFER], [Victim.PREFILL, Victim.DECODE]))


@pytest.mark.timeout(2_400)
def test_faults_in_mid_transfer_over_verbs(tmp_path: Path) -> None:
    findings = list(run_matrix(VERBS_CELLS, tmp_path, make_stage=verbs_stage))
    assert not {str(finding): finding.problems for finding in findings if finding.problems}
    assert len(findings) == len(Fault) * 2
