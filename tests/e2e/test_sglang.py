"""A whole system with real SGLang on the CPU, token for token against SGLang that is not disaggregated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.cli.switching import switch_here
from tandem.core.ids import Role
from tandem.rpc.credentials import PLAIN
from tandem.v1 import bootstrap_pb2
from tests.support.system.asking import Answer, body, events, generate, generate_all, last_event, prompt_of
from tests.support.system.reference import References
from tests.support.system.sockets import Listener, listeners
from tests.support.system.system import System, is_idle, running_system, watch_status

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.timeout(900)]

LENGTHS = [
    *(1, 2, 3, 5, 8, 13, 15, 16, 17, 31, 32, 33, 50, 63, 64, 65),
    *(100, 127, 128, 129, 200, 255, 256, 257, 400, 511, 512, 513, 800, 1000, 1500, 2000),
]
NEW_TOKENS = 64
CHUNK_TOKENS = 256
FLIPPED_CHUNK = 10
"""Only prompts of more than 2560 tokens have a chunk with this number; one more if a batch is shared."""
assert max(LENGTHS) <= (FLIPPED_CHUNK - 2) * CHUNK_TOKENS, "nor with the number before"
ONE_ATTEMPT = "gateway:TANDEM_GATEWAY_MAX_ATTEMPTS=1"
"""A second one would find the prompt in prefill's cache, and so have other chunks; and it would hide failures."""

A_THIRD_OR_ALL = [(1, 3), (8, 3), *(pytest.param(at_once, 1, marks=pytest.mark.long) for at_once in (1, 8))]
"""How many prompts at once, and whether each third or all. One at a time comes first: then they are in prefill's cache,
cut as for the reference. Several at once share a chunk's budget, and SGLang rounds a prompt that is cut elsewhere
otherwise."""

MAX_ENGINE_LISTENERS = 16
"""torch's store, gloo's process groups and the door of a rank's lanes."""


PROMPTS = [prompt_of(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """What SGLang answers by itself."""
    return References(tmp_path_factory.mktemp("reference"), PROMPTS, NEW_TOKENS)


async def answers_of(system: System, *, at_once: int, every: int = 1) -> list[Answer]:
    """The system's answers to PROMPTS: one at a time whole, several at once as streams, with prefill's first token.

    every: 3 = to each third of them.
    """
    stream = at_once > 1
    async with system.client() as client:
        return await generate_all(client, PROMPTS[::every], NEW_TOKENS, at_once=at_once, stream=stream, ignore_eos=True)


def differences(answers: list[Answer], wanted: list[list[int]], every: int = 1) -> list[str]:
    """Where answers are not token for token as wanted."""
    return [
        f"{len(prompt)} tokens: {answer.tokens} instead of {tokens}"
        for prompt, answer, tokens in zip(PROMPTS[::every], answers, wanted[::every], strict=True)
        if answer.tokens != tokens
    ]


async def token_bytes(system: System) -> int:
    """Bytes of KV per token on every rank, and pages times page size tokens travel."""
    layout = (await system.members())["decode-0"].info.layout
    kv = next(pool for pool in layout.pools if pool.name == "kv")
    assert sum(kv.item_bytes) % layout.page_size == 0
    return sum(kv.item_bytes) // layout.page_size


def paged(tokens: int, page_size: int) -> int:
    """Tokens of the pages that a prompt fills."""
    return -(-tokens // page_size) * page_size


# ---------------------------------------------------------------- one prefill, one decode, over each provider


@pytest.fixture(scope="module", params=["tcp", "cma"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker."""
    with running_system(tmp_path_factory.mktemp(request.param), "--provider", request.param) as system:
        yield system


@pytest.mark.parametrize("at_once", [1, 8])
async def test_token_for_token_as_plain_sglang(pair: System, references: References, at_once: int) -> None:
    wanted = references.answers()
    before = (await pair.wait_idle())["decode-0"]
    answers = await answers_of(pair, at_once=at_once)
    assert not differences(answers, wanted)
    # Decode recomputed nothing: every token's KV came from prefill, once.
    status = (await pair.wait_idle())["decode-0"]
    assert status.kv_bytes - before.kv_bytes == sum(LENGTHS) * await token_bytes(pair)
    assert status.rooms_succeeded - before.rooms_succeeded == len(PROMPTS)
    assert is_idle(status)


async def test_the_request_of_the_original_demo_works_as_it_stands(pair: System) -> None:
    request = {"text": "Let me tell you a lonnng story ", "sampling_params": {"temperature": 0}}
    async with pair.client() as client:
        response = await client.post("/generate", json=request)
    assert response.status_code == 200, response.text
    assert response.json()["text"]


async def test_every_listening_socket_is_expected_and_on_loopback(pair: System) -> None:
    state, members = pair.state, await pair.members()
    named = {Listener("bootstrap", state.bootstrap), Listener("gateway", state.admin)}
    named |= {Listener("gateway", state.url.removeprefix("http://"))}
    named |= {Listener(name, member.info.address) for name, member in members.items()}
    named |= {Listener(row.name, row.metrics) for row in state.processes} | {Listener("up", state.up)}
    named |= {Listener("prefill-0", rank.kv_link_address) for rank in members["prefill-0"].info.ranks}
    found = set(listeners(pair))
    assert named <= found
    engines = [one for one in found - named if one.program.startswith("sglang::")]
    # Besides what is named, only engine processes listen, and of ours among them only the door of prefill's lanes.
    assert found - named == set(engines)
    beyond = [one for one in engines if one.host != "127.0.0.1"]
    # torch.distributed keeps the store by which ranks find each other on every address, without a setting for it.
    assert sorted(one.owner for one in beyond) == ["decode-0", "prefill-0"], beyond
    # gloo, which carries what SGLang's own ranks tell each other, listens once per process group.
    for owner in ("prefill-0", "decode-0"):
        assert len([one for one in engines if one.owner == owner]) <= MAX_ENGINE_LISTENERS, engines


# ---------------------------------------------------------------- two decode workers, pages of 16 tokens, many chunks


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and two decode workers; long prompts arrive with a flipped byte."""
    options = ("--ratio", "1:2", "--page-size", "16", "--engine-arg", f"chunked_prefill_size={CHUNK_TOKENS}")
    faults = [
        f"{worker}:TANDEM_RANK_FAULT_{fault}"
        for worker in ("decode-0", "decode-1")
        for fault in (f"FLIP_CHUNK={FLIPPED_CHUNK}", "FLIP_TIMES=1000000")
    ]
    planted = [part for fault in (*faults, ONE_ATTEMPT) for part in ("--env", fault)]
    with running_system(tmp_path_factory.mktemp("chunked"), *options, *planted) as system:
        yield system


@pytest.mark.parametrize(("at_once", "every"), A_THIRD_OR_ALL)
async def test_pages_of_16_and_many_chunks_change_no_token(
    chunked: System, references: References, at_once: int, every: int
) -> None:
    # Plain SGLang with the same chunks: on some processors it rounds a prompt in chunks otherwise than a whole one.
    wanted = references.answers(page_size=16, chunked_prefill_size=CHUNK_TOKENS)
    before = await chunked.wait_idle()
    answers = await answers_of(chunked, at_once=at_once, every=every)
    assert not differences(answers, wanted, every)
    after = await chunked.wait_idle()
    moved = sum(after[name].kv_bytes - before[name].kv_bytes for name in ("decode-0", "decode-1"))
    assert moved == sum(paged(length, 16) for length in LENGTHS[::every]) * await token_bytes(chunked)
    for name, status in after.items():
        assert status.submitted > before[name].submitted, f"{name} got no request"


async def test_a_long_prompt_moves_in_three_chunks_or_more(chunked: System) -> None:
    before = await chunked.wait_idle()
    async with chunked.client() as client:
        await generate(client, prompt_of(4 * CHUNK_TOKENS, seed=77), 4)
    after = await chunked.wait_idle()
    assert sum(after[name].kv_chunks - before[name].kv_chunks for name in after if name.startswith("decode")) >= 3


async def test_a_flipped_byte_makes_the_request_fail_clearly_and_the_next_one_is_right(
    chunked: System, references: References
) -> None:
    async with chunked.client() as client:
        response = await client.post("/generate", json=body(prompt_of(3000, seed=78), 8))
        assert response.status_code == 502, response.text
        assert response.json()["error"]["code"] == "checksum_mismatch"
        answer = await generate(client, PROMPTS[20], NEW_TOKENS, ignore_eos=True)
    assert answer.tokens == references.answers()[20]
    statuses = await chunked.wait_idle()
    assert sum(status.checksum_failures for status in statuses.values()) >= 1
    assert all(is_idle(status) for status in statuses.values()), statuses


async def test_a_killed_decode_worker_ends_its_stream_and_comes_back(chunked: System, references: References) -> None:
    """Last in its module's system: it leaves a restarted worker."""
    old = (await chunked.members())["decode-0"].info.worker.incarnation
    async with chunked.client() as client:
        # least_load gives one to each decode worker.
        begun = [asyncio.Event() for _ in range(2)]
        asked = [body(prompt, 1500, ignore_eos=True) for prompt in PROMPTS[9:11]]
        streams = [asyncio.create_task(last_event(client, *one)) for one in zip(asked, begun, strict=True)]
        async with asyncio.timeout(20):
            for one in begun:
                await one.wait()
        chunked.kill("decode-0")
        killed = time.monotonic()
        failed = [last for last in await asyncio.gather(*streams) if "error" in last]
        assert len(failed) == 1
        assert failed[0]["at"] - killed < 2
        answer = await generate(client, PROMPTS[12], NEW_TOKENS, ignore_eos=True)
        assert answer.tokens == references.answers()[12]
    await chunked.wait_view(
        lambda view: "decode-0" in view.workers and view.workers["decode-0"].life.incarnation > old, timeout_s=200
    )
    statuses = await chunked.wait_idle()
    assert sorted(statuses) == ["decode-0", "decode-1", "prefill-0"]
    assert all(is_idle(status) for status in statuses.values()), statuses


# ---------------------------------------------------------------- an answer that goes on elsewhere


@pytest.mark.long
async def test_an_answer_goes_on_token_for_token_when_its_decode_worker_is_killed(
    tmp_path: Path, references: References
) -> None:
    number = 14
    with running_system(tmp_path, "--ratio", "1:2") as system:
        async with system.client() as client:
            last: dict[str, Any] = {}
            killed = 0
            busy = asyncio.create_task(system.busy_decode())
            async for last in events(client, "/generate", body(PROMPTS[number], NEW_TOKENS, ignore_eos=True)):
                if not killed and len(last["output_ids"]) >= 5:
                    killed = system.kill(await busy)
        assert "error" not in last, last
        assert last["output_ids"] == references.answers()[number]
        assert last["meta_info"]["prompt_tokens"] == LENGTHS[number]
        assert last["meta_info"]["completion_tokens"] == NEW_TOKENS
        assert "attempt 1 on" in system.logs(200), "the answer was over before the worker was killed"


# ---------------------------------------------------------------- workers that change their roles as they run


@pytest.mark.long
async def test_a_change_of_role_under_load_changes_no_token_and_loads_no_model(
    tmp_path: Path, references: References
) -> None:
    """A worker of decode becomes one of prefill, then the old prefill worker one of decode, and all back."""
    moves = [
        ("decode-1", Role.PREFILL),
        ("prefill-0", Role.DECODE),
        ("prefill-0", Role.PREFILL),
        ("decode-1", Role.DECODE),
    ]
    with running_system(tmp_path, "--ratio", "1:2", "--role-switch") as system:
        wanted, processes = references.answers(), system.processes()
        assert not differences(await answers_of(system, at_once=1), wanted)
        for worker_id, role in moves:
            asked = asyncio.create_task(answers_of(system, at_once=4))
            await system.busy_decode()
            assert await switch_here(tmp_path / "state.json", PLAIN, worker_id, role, 120) == worker_id
            assert not differences(await asked, wanted), f"{worker_id} became one of {role.value}"
            assert (await system.members())[worker_id].role == role.value
            statuses = await system.wait_idle()
            assert all(is_idle(status) for status in statuses.values())
        assert system.processes().keys() == processes.keys()


# ---------------------------------------------------------------- unified workers


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One worker that is not disaggregated, and no other."""
    with running_system(tmp_path_factory.mktemp("alone"), "--ratio", "0:0", "--unified", "1") as system:
        yield system


@pytest.mark.parametrize(("at_once", "every"), A_THIRD_OR_ALL)
async def test_a_unified_worker_changes_no_token(
    alone: System, references: References, at_once: int, every: int
) -> None:
    wanted = references.answers()
    before = (await alone.wait_idle())["unified-0"]
    answers = await answers_of(alone, at_once=at_once, every=every)
    assert not differences(answers, wanted, every)
    status = (await alone.wait_idle())["unified-0"]
    assert status.rooms_succeeded - before.rooms_succeeded == len(answers)
    assert [pool.name for pool in status.pools] == ["kv"]
    assert status.pools[0].free + status.pools[0].evictable == status.pools[0].total > 0


async def test_a_unified_worker_scores_prompt_and_answer(alone: System) -> None:
    request = {"model": "tandem-tiny", "prompt": PROMPTS[10], "max_tokens": 4, "logprobs": 2, "echo": True}
    async with alone.client() as client:
        response = await client.post("/v1/completions", json={**request, "ignore_eos": True})
    assert response.status_code == 200, response.text
    found = response.json()["choices"][0]["logprobs"]
    assert found["token_logprobs"][0] is None
    assert len(found["token_logprobs"]) == LENGTHS[10] + 4
    assert all(isinstance(one, float) for one in found["token_logprobs"][1:])


async def test_a_client_of_a_unified_worker_that_leaves_frees_its_pages(alone: System) -> None:
    before = (await alone.wait_idle())["unified-0"]
    async with alone.client() as client:
        async for _ in events(client, "/generate", body(PROMPTS[10], 1500, ignore_eos=True)):
            break
    status = (await alone.wait_idle())["unified-0"]
    assert status.rooms_failed - before.rooms_failed == 1
    assert is_idle(status)


@pytest.mark.long
async def test_an_answer_that_a_unified_worker_began_goes_on_token_for_token_on_a_pair(
    tmp_path: Path, references: References
) -> None:
    number = 14
    with running_system(tmp_path, "--unified", "1") as system:
        async with system.client() as client:
            last: dict[str, Any] = {}
            killed = 0
            async for last in events(client, "/generate", body(PROMPTS[number], NEW_TOKENS, ignore_eos=True)):
                if not killed and len(last["output_ids"]) >= 5:
                    killed = system.kill("unified-0")
            assert "error" not in last, last
            assert last["output_ids"] == references.answers()[number]
            assert "attempt 1 on unified-0" in system.logs(200), "the answer was over before the worker was killed"
            answer = await generate(client, PROMPTS[-1], NEW_TOKENS, ignore_eos=True)
            assert answer.tokens == references.answers()[-1]
        statuses = await system.statuses()
        assert statuses["decode-0"].rooms_succeeded == 2


# ---------------------------------------------------------------- two ranks on each side


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Tensor parallel size 2 on both sides; with long prompts one rank's lane stalls, and the other's bytes flip."""
    options = ("--tp", "2", "--provider", "cma", "--engine-arg", f"chunked_prefill_size={CHUNK_TOKENS}")
    flip = (f"FLIP_CHUNK={FLIPPED_CHUNK}", "FLIP_TIMES=1000000", "FLIP_TP=0")
    stall = (f"STALL_CHUNK={FLIPPED_CHUNK - 1}", "STALL_TP=1")
    faults = [f"decode-0:TANDEM_RANK_FAULT_{fault}" for fault in (*flip, *stall)]
    planted = [part for fault in (*faults, ONE_ATTEMPT) for part in ("--env", fault)]
    with running_system(tmp_path_factory.mktemp("doubled"), *options, *planted) as system:
        yield system


@pytest.mark.parametrize(("at_once", "every"), A_THIRD_OR_ALL)
async def test_two_ranks_on_each_side_change_no_token(
    doubled: System, references: References, at_once: int, every: int
) -> None:
    wanted = references.answers(tp_size=2, chunked_prefill_size=CHUNK_TOKENS)
    before = (await doubled.wait_idle())["decode-0"]
    answers = await answers_of(doubled, at_once=at_once, every=every)
    assert not differences(answers, wanted, every)
    status = (await doubled.wait_idle())["decode-0"]
    assert status.kv_bytes - before.kv_bytes == 2 * sum(LENGTHS[::every]) * await token_bytes(doubled)


async def test_no_page_comes_back_before_both_ranks_are_fenced(doubled: System, references: References) -> None:
    """One rank of decode fails on a flipped byte; the other one's lane is stuck, so that bytes may still land there."""
    members, pushed = await doubled.members(), (FLIPPED_CHUNK + 1) * CHUNK_TOKENS
    before = await doubled.wait_idle()
    watched, held = [asyncio.Event(), asyncio.Event()], {}
    for name, seen in zip(("prefill-0", "decode-0"), watched, strict=True):
        work = _held_while_open(members[name].info, before[name].rooms_failed, seen)
        held[name] = asyncio.create_task(work)
        await asyncio.wait_for(seen.wait(), 20)
    async with doubled.client() as client:
        response = await client.post("/generate", json=body(prompt_of(3000, seed=79), 8))
    assert response.status_code == 502, response.text
    assert response.json()["error"]["code"] == "checksum_mismatch"
    after = await doubled.wait_idle()
    assert after["decode-0"].checksum_failures > before["decode-0"].checksum_failures
    assert all(is_idle(status) for status in after.values()), after
    for name, task in held.items():
        failed = await asyncio.wait_for(task, 20)
        assert failed, f"{name} was never seen with one rank failed and the other not"
        assert min(failed) >= pushed, f"{name} gave pages back while a rank's room was open: {failed}"
    async with doubled.client() as client:
        answer = await generate(client, PROMPTS[20], NEW_TOKENS, ignore_eos=True)
    assert answer.tokens == references.answers(tp_size=2, chunked_prefill_size=CHUNK_TOKENS)[20]


@pytest.mark.long
async def test_two_ranks_get_only_the_rest_of_a_prompt_whose_beginning_they_hold(tmp_path: Path) -> None:
    start, new, page = prompt_of(200, seed=90), 16, 16
    asked = [start, start + prompt_of(60, seed=91), start + prompt_of(300, seed=92)]
    wanted = References(tmp_path, asked, new).answers(tp_size=2, page_size=page)
    options = ("--tp", "2", "--page-size", str(page), "--keep-prefixes")
    moved: list[int] = []
    with running_system(tmp_path, *options, start_timeout_s=300) as system:
        before = (await system.wait_idle())["decode-0"]
        async with system.client() as client:
            for prompt, tokens in zip(asked, wanted, strict=True):
                assert (await generate(client, prompt, new, ignore_eos=True)).tokens == tokens
                after = (await system.wait_idle())["decode-0"]
                assert is_idle(after)
                moved.append(after.kv_bytes - before.kv_bytes)
                before = after
        token = 2 * await token_bytes(system)
    held = len(start) // page * page
    assert moved == [(paged(len(one), page) - (held if one is not start else 0)) * token for one in asked]


async def _held_while_open(info: bootstrap_pb2.WorkerInfo, before: int, watched: asyncio.Event) -> list[int]:
    """Pages in use, whenever one rank's room has failed and the other's has not ended."""
    held: list[int] = []
    async for status in watch_status(info):
        watched.set()
        if status.rooms_failed > before and status.open_rooms == 0:
            return held
        if status.rooms_failed > before:
            kv = next(pool for pool in status.pools if pool.name == "kv")
            held.append(kv.total - kv.free - kv.evictable)
    raise AssertionError("the worker ended its status")
