"""Calibration finds the costs of a system that follows the model, through the very probes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from itertools import accumulate, islice

import numpy as np
import pytest

from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.workload import Question, Shape, synthetic
from tandem.cli.calibrate.fit import BurstSample, PromptSample, StepSample, fit
from tandem.cli.calibrate.probe import ProbePlan, busy_of, probe_bursts, probe_prompts, probe_steps
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan
from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.errors import ErrorReason, TandemError

TRUE = EngineCosts(3000, 40, 5, 6000, 150, 20)
LINK = LinkCosts(2.0, 400)
GATEWAY = GatewayCosts(7000)
SHAPE = WorkerShape(chunk_tokens=512, kv_bytes_per_token=10_000, batch_prompts=1)


class ModelSystem:
    """Answers as a simulated cluster would: all that is asked at one moment comes to it at once."""

    def __init__(self, noise: float = 0.0) -> None:
        self._noise, self._dice = noise, random.Random(3)
        self._asked: list[tuple[Question, asyncio.Future[AnswerReader]]] = []

    async def send(self, question: Question) -> AnswerReader:
        """One request."""
        answer: asyncio.Future[AnswerReader] = asyncio.get_running_loop().create_future()
        self._asked.append((question, answer))
        if len(self._asked) == 1:
            asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(self._run))
        return await answer

    def _run(self) -> None:
        asked, self._asked = self._asked, []
        plan = ClusterPlan(costs=TRUE, link=LINK, shape=SHAPE, gateway=GATEWAY)
        asks = [Ask(0.0, ((n, q.prompt_tokens),), q.new_tokens) for n, (q, _) in enumerate(asked)]
        run = Cluster(plan).run(asks)
        for (_, answer), ttft, e2e, gap, new in zip(
            asked, run.ttft_s, run.e2e_s, run.longest_gap_s, run.new_tokens, strict=True
        ):
            reader = AnswerReader(Api.COMPLETIONS, 0.0)
            factor = 1 + self._noise * self._dice.uniform(-1, 1)
            rest = max(0.0, e2e - ttft - gap)
            reader.ttft_ms, reader.new_tokens = ttft * 1000 * factor, new
            reader.gaps_ms = [gap * 1000 * factor, *[rest * 1000 * factor / (new - 2)] * (new - 2)]
            answer.set_result(reader)


PLAN = ProbePlan([32, 100, 256, 400, 512], [1, 2, 8], [32, 512], new_tokens=256, repeats=3)


@pytest.mark.parametrize(("noise", "off"), [(0.0, 0.05), (0.03, 0.15)])
async def test_the_costs_of_a_system_that_follows_the_model_are_found(noise: float, off: float) -> None:
    system = ModelSystem(noise)
    prompts, bursts = await probe_prompts(PLAN, system.send, 0), await probe_bursts(PLAN, system.send, 0)
    found = fit(prompts, bursts, await probe_steps(PLAN, system.send, 0), SHAPE)
    assert found.prefill_error < off
    assert max(map(abs, found.gateway.gap_us)) < 1, "the steps of this system are even"
    assert found.step_error < off
    for tokens in (50, 300, 512):
        assert found.engine.prefill_us_per_batch * 1e-6 + found.engine.prompt_s(tokens, 0) == pytest.approx(
            TRUE.prefill_us_per_batch * 1e-6 + TRUE.prompt_s(tokens, 0), rel=off
        )
    for sequences, context in ((1, 100), (8, 4000)):
        assert found.engine.steps_s(1, sequences, context) == pytest.approx(
            TRUE.steps_s(1, sequences, context), rel=off
        )


@pytest.mark.parametrize("together", [1, 2, 0])
def test_without_noise_every_single_cost_is_found(together: int) -> None:
    shape = replace(SHAPE, batch_prompts=together)
    prompts = [
        PromptSample(n, 0.010 + 40e-6 * n + 5e-9 * n * n / 2, LINK.chunk_s(10_000 * n) + TRUE.steps_s(1, 1, n + 1))
        for n in (10, 100, 300, 500)
    ]
    steps = [StepSample(s, c, TRUE.steps_s(1, s, c)) for s in (1, 4, 16) for c in (100, 5000)]
    run = Cluster(ClusterPlan(costs=TRUE, shape=shape)).run(Ask(n * 1e-6, ((n, 256),), 1) for n in range(5))
    bursts = busy_of(256, sorted(run.ttft_s), 0.0)
    found = fit(prompts, bursts, steps, shape)
    assert found.gateway.us_per_request == pytest.approx(7000, rel=1e-3)
    for name in EngineCosts.__slots__:
        assert getattr(found.engine, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)
    assert found.link.gbytes_per_s == pytest.approx(2.0, rel=1e-4)
    assert found.link.us_per_chunk == pytest.approx(400, rel=1e-3)


def test_the_batches_that_an_engine_made_of_a_burst_are_seen() -> None:
    def seconds(*batches: int) -> list[float]:
        """When the prompts of each batch have their first tokens."""
        ends = accumulate(TRUE.prefill_us_per_batch * 1e-6 + count * TRUE.prompt_s(256, 0) for count in batches)
        # A client does not see them at the very same moment.
        return [end + n * 1e-5 for end, count in zip(ends, batches, strict=True) for n in range(count)]

    def burst(*batches: int) -> BurstSample:
        (found,) = busy_of(256, seconds(*batches), 0.0)
        return found

    assert busy_of(256, seconds(4), 0.0) == []
    assert burst(1, 3) == BurstSample(256, 3, 1, pytest.approx(0.003 + 3 * TRUE.prompt_s(256, 0), abs=1e-4))
    assert burst(2, 1, 1) == BurstSample(256, 2, 2, pytest.approx(0.006 + 2 * TRUE.prompt_s(256, 0), abs=1e-4))
    prompts = [PromptSample(n, 0.010 + TRUE.prompt_s(n, 0), 0.01) for n in (10, 100, 300, 500)]
    steps = [StepSample(s, 10 * s, 0.01) for s in (1, 2, 4)]
    bursts = [burst(1, 3, 4), burst(2, 6), burst(1, 1, 6), burst(1, 7)]
    found = fit(prompts, bursts, steps, replace(SHAPE, chunk_tokens=2048, batch_prompts=0))
    assert found.prefill_error < 0.001, "engines do not make the same batches of every burst"
    assert found.engine.prefill_us_per_batch == pytest.approx(3000, rel=0.02)


async def test_prompts_are_not_those_of_bench_serve() -> None:
    asked: list[Question] = []

    async def send(question: Question) -> AnswerReader:
        asked.append(question)
        return await system.send(question)

    system, plan = ModelSystem(), replace(PLAN, new_tokens=64, repeats=1)
    for probe in (probe_prompts, probe_bursts, probe_steps):
        await probe(plan, send, 0)
    pieces = {piece.key for question in asked for piece in question.pieces}
    assert len(pieces) == len(asked), "none is asked twice"
    own = {
        piece.key
        for question in islice(synthetic(Shape(), 0, np.random.default_rng(0)), 100)
        for piece in question.pieces
    }
    assert not pieces & own, "a system may keep what it was asked"


def test_no_cost_is_negative() -> None:
    falling = [PromptSample(n, 0.02 - 1e-5 * n, 0.01) for n in (10, 100, 500)]
    found = fit(falling, [], [StepSample(s, 10 * s, 0.01 / s) for s in (1, 2, 4)], SHAPE)
    assert min(getattr(found.engine, name) for name in EngineCosts.__slots__) >= 0
    assert found.link.gbytes_per_s > 0


async def test_too_little_and_failures_are_said() -> None:
    with pytest.raises(TandemError) as few:
        fit([PromptSample(1, 1, 1)], [], [], SHAPE)
    assert few.value.reason is ErrorReason.INVALID_ARGUMENT

    async def fails(_: Question) -> AnswerReader:
        reader = AnswerReader(Api.COMPLETIONS, 0.0)
        reader.error = "http_503_no_worker"
        return reader

    with pytest.raises(TandemError, match="http_503_no_worker"):
        await probe_prompts(PLAN, fails, 0)


def test_how_uneven_gaps_are_is_found() -> None:
    prompts = [PromptSample(n, 0.01 + n * 1e-5, 0.01) for n in (10, 100, 500)]
    steps = [StepSample(s, 10 * s, 0.01, (-0.001, 0.0, 0.0, 0.001)) for s in (1, 2, 4)]
    gap_us = fit(prompts, [], steps, SHAPE).gateway.gap_us
    assert (gap_us[0], gap_us[len(gap_us) // 2], gap_us[-1]) == pytest.approx((-1000, 0, 1000))
    assert sum(gap_us) == pytest.approx(0)
