"""The search, on loads whose best set-up follows from sums, and the choice among what it found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import pytest

from tandem.cli.bench_serve.choices import Arrivals
from tandem.cli.bench_serve.numbers import parse_slo
from tandem.cli.bench_serve.run import Load
from tandem.cli.bench_serve.traces import TraceRow
from tandem.cli.bench_serve.workload import Shape
from tandem.cli.sim_serve.costs import EngineCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.jobs import Ask
from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sizing.candidates import Arrangement, Candidate, Kind, arrangements, policy_for, usual_policies
from tandem.cli.sizing.capacity import capacity_of
from tandem.cli.sizing.goodput import (
    STEP,
    Finding,
    Part,
    Question,
    Served,
    bound_of,
    highest_rate,
    serve,
    with_part,
)
from tandem.cli.sizing.mixtures import mixtures
from tandem.cli.sizing.sample import Sample, sample_of, sample_of_asks
from tandem.cli.sizing.search import Item, Outcome, Space, frontier, search, winner
from tandem.core.affinity import key_of_text
from tandem.core.errors import TandemError
from tandem.core.policies import PolicyName

ENGINE = EngineCosts(prefill_us_per_token=10, step_us=1000, step_us_per_sequence=0)
NO_LINK = LinkCosts(gbytes_per_s=1e9, us_per_chunk=0)
LEAST_LOAD = PolicyName.LEAST_LOAD
COUNT = 80


def asked(prompt: int, new: int, count: int = COUNT) -> Sample:
    """Requests of one length that share nothing, evenly."""
    return sample_of_asks([Ask(float(number), ((number, prompt),), new) for number in range(count)])


def question(sample: Sample, slo: str = "ttft=1s", **changed: object) -> Question:
    model = CostModel(ENGINE, NO_LINK, WorkerShape(max_running=8))
    return Question(replace(model, **changed), sample, parse_slo(slo))  # type: ignore[arg-type]


def space(*workers: int) -> Space:
    return Space(workers, [LEAST_LOAD], [16])


def pairs(outcome: Outcome) -> Sequence[Finding]:
    return [one for one in outcome.findings if not one.candidate.arrangement.unified]


def test_long_prompts_with_one_token_want_prefill_workers_and_long_answers_decode_workers() -> None:
    """A prompt of 2000 tokens is 20 ms: three of four workers compute 150 a second. An answer of 101 tokens is 100
    steps of 1 ms, for 8 at once: three of four give 240 a second."""
    prompts, answers = (search(question(sample), space(4)) for sample in (asked(2000, 1), asked(1, 101)))
    assert pairs(prompts)[0].candidate.arrangement == Arrangement(3, 1)
    assert pairs(prompts)[0].goodput_per_s == pytest.approx(150, rel=0.03)
    assert pairs(answers)[0].candidate.arrangement == Arrangement(1, 3)
    assert pairs(answers)[0].goodput_per_s == pytest.approx(240, rel=0.03)


def test_unified_workers_win_where_nobody_minds_the_stalls_and_lose_where_somebody_does() -> None:
    """Nobody is idle among four that do both. But each prompt of 20 ms is a gap in whatever decodes beside it."""
    patient = search(question(asked(2000, 21)), space(4))
    best = winner(patient.findings)
    assert best is not None
    assert best.candidate.arrangement == Arrangement(unified=4)
    hasty = search(question(asked(2000, 21), "ttft=1s,itl=10ms"), space(4))
    best = winner(hasty.findings)
    assert best is not None
    assert best.candidate.arrangement == Arrangement(3, 1)


def test_goodput_is_below_its_bound_and_near_it_where_nothing_is_by_chance() -> None:
    asks = question(asked(1000, 1), "ttft=50ms")
    found = highest_rate(asks, Candidate(Arrangement(1, 1), LEAST_LOAD, 16))
    assert found.bound_per_s == pytest.approx(100)
    assert 97 <= found.goodput_per_s <= 100
    assert found.served is not None
    assert found.served.ttft_ms == pytest.approx(10, abs=0.1)
    assert found.goodput_per_s < found.failed_per_s


def test_an_slo_that_a_single_request_breaks_gives_nothing() -> None:
    found = highest_rate(question(asked(1000, 1), "ttft=5ms"), Candidate(Arrangement(1, 1), LEAST_LOAD, 16))
    assert (found.served, found.goodput_per_s) == (None, 0)
    outcome = search(question(asked(1000, 1), "ttft=5ms"), space(2))
    assert winner(outcome.findings) is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"engine": replace(ENGINE, prefill_us_per_token=100)}, Part.PREFILL),
        ({"engine": replace(ENGINE, step_us=0, step_us_per_sequence=2000)}, Part.DECODE),
        ({"link": LinkCosts(gbytes_per_s=0.5, us_per_chunk=0)}, Part.LINK),
        ({"shape": WorkerShape(kv_tokens=1200, max_running=64)}, Part.PAGES),
        ({"shape": WorkerShape(max_running=2)}, Part.PLACES),
    ],
)
def test_what_binds_is_what_was_made_scarce(changed: dict[str, object], expected: Part) -> None:
    asks = question(asked(200, 51), "ttft=200ms,e2e=2s", **changed)
    found = with_part(asks, highest_rate(asks, Candidate(Arrangement(1, 1), LEAST_LOAD, 16)))
    assert found.part is expected


def test_what_is_not_tried_would_not_have_won() -> None:
    dice, times = random.Random(1), accumulate(random.Random(2).expovariate(1) for _ in range(120))
    sample = sample_of_asks([Ask(at_s, ((n, dice.randrange(100, 1500)),), 31) for n, at_s in enumerate(times)])
    asks = question(sample, "ttft=14ms")
    outcome = search(asks, space(5))
    assert outcome.skipped
    assert len(pairs(outcome)) > 1, "the likeliest is far below its bound, so that others have to be tried"
    best = max(one.goodput_per_s for one in outcome.findings)
    for arrangement, bound in outcome.skipped:
        found = highest_rate(asks, Candidate(arrangement, LEAST_LOAD, 16))
        assert found.goodput_per_s <= bound <= best


def test_no_arrangement_is_forgotten_and_the_answer_is_the_same_each_time() -> None:
    asks = question(asked(800, 21, 40), "ttft=100ms,itl=20ms")
    where = Space([2, 3], [LEAST_LOAD, PolicyName.RANDOM], [16], deep=1)

    def backwards(work: Callable[[Item], Finding], items: Iterable[Item], /) -> Iterable[Finding]:
        return [work(one) for one in reversed(list(items))][::-1]

    outcome = search(asks, where)
    assert outcome == search(asks, where, backwards)
    tried = {one.candidate.arrangement for one in outcome.findings} | {one for one, _ in outcome.skipped}
    assert tried == set(arrangements([2, 3]))
    assert all(one.part for one in outcome.findings)


def test_prompts_that_begin_alike_are_kept_and_want_a_policy_that_brings_them_together() -> None:
    """Twelve beginnings, each worker keeps four: by prefix each computes what is new, in turn each computes all."""
    dice = random.Random(1)
    begun = [dice.randrange(12) for _ in range(400)]
    asks = [Ask(float(n), ((one, 1000), (100 + n, 10)), 2, prefix=key_of_text(str(one))) for n, one in enumerate(begun)]
    shape = WorkerShape(kv_tokens=10_000)
    found = {
        policy: highest_rate(
            question(sample_of_asks(asks), "ttft=100ms", shape=shape), Candidate(Arrangement(4, 1), policy, 1)
        ).goodput_per_s
        for policy in (PolicyName.ROUND_ROBIN, PolicyName.PREFIX_HASH)
    }
    assert found[PolicyName.PREFIX_HASH] > 1.5 * found[PolicyName.ROUND_ROBIN]


def test_another_way_is_asked_only_for_what_is_better() -> None:
    asks, candidate = question(asked(1000, 1), "ttft=50ms"), Candidate(Arrangement(1, 1), LEAST_LOAD, 16)
    whole = highest_rate(asks, candidate)
    assert highest_rate(asks, candidate, whole.goodput_per_s).served is None
    assert highest_rate(asks, candidate, whole.goodput_per_s / 1.02).served is None, "a step may be chance"
    for part in (0.9, 0.5, 0.02):
        assert highest_rate(asks, candidate, whole.goodput_per_s * part).goodput_per_s == whole.goodput_per_s


def finding(arrangement: Arrangement, goodput: float) -> Finding:
    served = Served(goodput, 1, 1, 1, 1) if goodput else None
    return Finding(Candidate(arrangement, LEAST_LOAD, 16), 100, served, 100)


def test_the_frontier_and_the_winner_are_those_that_nothing_as_small_beats() -> None:
    two, three, idle, four, five = (
        finding(Arrangement(1, workers - 1), goodput)
        for workers, goodput in ((2, 10.0), (3, 24.0), (4, 20.0), (4, 28.0), (5, 28.0))
    )
    found = [five, idle, four, three, two]
    assert frontier(found) == [two, three, four]
    assert winner(found) is three, "8 for each worker"
    assert winner(found, 10) is two
    assert winner(found, 25) is four
    assert winner(found, 29) is None
    assert winner([finding(Arrangement(1, 1), 0)]) is None


def test_a_bound_counts_every_part() -> None:
    model = CostModel(
        EngineCosts(prefill_us_per_batch=1000, prefill_us_per_token=10, step_us=1000, step_us_per_sequence=100),
        LinkCosts(gbytes_per_s=1, us_per_chunk=1000),
        WorkerShape(kv_tokens=4 * 1020, chunk_tokens=500, kv_bytes_per_token=10_000),
    )
    found = capacity_of(model, asked(1000, 20))
    assert found.prefill_s == pytest.approx(0.010 + 2 * 0.001)
    assert found.decode_s == pytest.approx(19 * (1000 + 4 * 100) / 4 * 1e-6), "four have pages at once"
    assert found.link_s == pytest.approx(0.001 + 0.01)
    assert bound_of(found, Arrangement(2, 3)) == pytest.approx(2 / 0.012)
    assert bound_of(found, Arrangement(3, 1)) == pytest.approx(1 / 0.011)
    assert bound_of(found, Arrangement(unified=2)) == pytest.approx(2 / (found.prefill_s + found.decode_s))
    assert capacity_of(model, asked(1000, 1)).decode_s == 0


def test_a_sample_keeps_its_order_at_every_rate_and_a_trace_begins_anew_with_other_prompts() -> None:
    rows = (TraceRow(5.0, 600, 4, (1, 2)), TraceRow(6.0, 700, 5, (1, 3)), TraceRow(9.0, 50, 6, (4,)))
    load = Load(Shape(), rows, Arrivals.POISSON, 1, 1, 1000, 0, 10**6, 10**6, 10**6, 60)
    sample = sample_of(load, seed=3, requests=7)
    assert [ask.new_tokens for ask in sample.asks] == [4, 5, 6, 4, 5, 6, 4]
    assert sample.held_tokens == [0, 512, 0, 0, 512, 0, 0]
    times = [ask.at_s for ask in sample.asks]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0, pytest.approx(6)), "one a second"
    assert [ask.at_s for ask in sample.at(4)] == [at_s / 4 for at_s in times]
    assert sample.longest_tokens == 705
    at_once = sample_of_asks([Ask(7.0, ((1, 1),), 1)] * 3)
    assert [ask.at_s for ask in at_once.asks] == [0, 1, 2]


def test_policies_that_a_load_gives_nothing_to_go_by_are_refused() -> None:
    for name, load in (("cache_aware", {"sessions": True}), ("consistent_hash", {"shared": True})):
        with pytest.raises(TandemError, match=name):
            policy_for(name, **{"shared": False, "sessions": False, **load})
        assert policy_for(name, shared=True, sessions=True).value == name
        assert PolicyName(name) in usual_policies(shared=True, sessions=True)
        assert PolicyName(name) not in usual_policies(shared=False, sessions=False)


def conversations() -> Sample:
    """A common beginning, then turns of sixteen conversations, of which a worker's cache holds four."""
    dice, turns, asks = random.Random(2), [0] * 16, list[Ask]()
    for number in range(300):
        one = dice.randrange(16)
        pieces = ((1000, 100), *((100 * one + turn, 100) for turn in range(turns[one] + 1)))
        asks.append(Ask(float(number), pieces, 2, key_of_text(str(one)), key_of_text("all")))
        turns[one] = (turns[one] + 1) % 8
    return sample_of_asks(asks)


def test_the_policy_that_finds_what_caches_hold_wins_where_that_matters() -> None:
    """All begin alike, so that the first tokens tell nothing; a session or what is held does."""
    asks = question(conversations(), "ttft=10ms", shape=WorkerShape(kv_tokens=8000, max_running=64))
    policies = [LEAST_LOAD, PolicyName.PREFIX_HASH, PolicyName.CACHE_AWARE, PolicyName.CONSISTENT_HASH]
    outcome = search(asks, Space([3], policies, [16], deep=1))
    best = winner(outcome.findings)
    assert best is not None
    assert best.candidate.policy in (PolicyName.CACHE_AWARE, PolicyName.CONSISTENT_HASH)
    plain = max(one.goodput_per_s for one in outcome.variants if one.candidate.policy is LEAST_LOAD)
    assert best.goodput_per_s > 1.2 * plain


def test_policies_and_page_sizes_are_tried_for_the_best_splits_only_and_not_each_with_each() -> None:
    asks = question(asked(800, 21, 40), "ttft=100ms")
    policies = [LEAST_LOAD, PolicyName.ROUND_ROBIN, PolicyName.LEAST_COST]
    outcome = search(asks, Space([5], policies, [16, 1, 64], deep=1))
    varied = [one.candidate for one in outcome.variants if one.above_per_s]
    pairs_, unified = ([one for one in varied if bool(one.arrangement.unified) is alone] for alone in (False, True))
    assert len({one.arrangement for one in pairs_}) == 1
    assert len(pairs_) == 2 + 2
    assert len(unified) == 1 + 2, "nothing to compare costs of"
    assert len({one.policy for one in varied if one.page_tokens != 16}) <= 2


def mixed_load() -> Sample:
    """Many short prompts with long answers, some long ones with short answers."""
    dice = random.Random(4)
    rows = [(2000, 2) if dice.random() < 0.15 else (40, 60) for _ in range(300)]
    return sample_of_asks([Ask(float(n), ((n, prompt),), new) for n, (prompt, new) in enumerate(rows)])


def test_unified_workers_beside_pairs_win_where_a_split_leaves_a_role_idle() -> None:
    """Prefill needs 1.4 of four workers, decode 2.6: those that get the short prompts take what is left over."""
    outcome = search(question(mixed_load(), "ttft=200ms,itl=8ms"), replace(space(4), mixed=True))
    tried = {one.candidate.arrangement for one in outcome.variants if one.kind is Kind.MIXED}
    assert {one.workers for one in tried} == {4}
    better = {one.candidate.arrangement for one in outcome.findings if one.kind is Kind.MIXED}
    assert better
    assert set(outcome.beaten) == tried - better
    best, plain = (
        winner(outcome.findings),
        max(one.goodput_per_s for one in outcome.findings if one.kind is not Kind.MIXED),
    )
    assert best is not None
    assert best.kind is Kind.MIXED
    assert 1.1 * plain < best.goodput_per_s <= best.bound_per_s


def test_a_mixture_gives_its_unified_workers_their_part_of_the_work() -> None:
    asks = question(mixed_load())
    parent = finding(Arrangement(2, 2), 10.0)
    found = list(mixtures(asks, [parent, finding(Arrangement(unified=4), 20.0)]))
    assert {str(one.arrangement) for one in found} == {"1:2 + 1 unified", "2:1 + 1 unified", "1:1 + 2 unified"}
    assert {one.short_tokens for one in found} == {256, 2000}, "the short ones are less than their part"
    assert not list(mixtures(asks, [finding(Arrangement(1, 1), 10.0)])), "a pair is the least"


@pytest.mark.parametrize(
    ("pages", "expected"), [(0.5, Part.PAGES), (0.41, Part.PAGES), (0.39, Part.DECODE), (0.0, Part.DECODE)]
)
def test_room_binds_where_it_saves_nearly_as_much_as_the_best_relief(
    pages: float, expected: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faster engine gives room back sooner, so that both help where room binds: four fifths are enough to say so."""
    gains = {Part.PREFILL: 0.3, Part.DECODE: 0.5, Part.PAGES: pages, Part.PLACES: 0.1, Part.LINK: 0.0}
    monkeypatch.setattr("tandem.cli.sizing.goodput._gains", lambda *_: iter([dict.fromkeys(gains, 0.009), gains]))
    assert with_part(question(asked(10, 2)), finding(Arrangement(1, 1), 10.0)).part is expected


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_goodput_is_the_highest_rate_at_which_the_share_keeps_the_slo(share: float) -> None:
    dice, times = random.Random(1), accumulate(random.Random(2).expovariate(1) for _ in range(200))
    sample = sample_of_asks([Ask(at_s, ((n, dice.randrange(100, 1500)),), 3) for n, at_s in enumerate(times)])
    asks, candidate = replace(question(sample, "ttft=14ms"), share=share), Candidate(Arrangement(1, 1), LEAST_LOAD, 16)
    found = highest_rate(asks, candidate)
    if share == 1:
        assert found.served is None, "a prompt of 1500 tokens takes 15 ms by itself"
        return
    assert found.served is not None
    assert found.served.kept_share >= share
    assert serve(asks, candidate, found.failed_per_s).kept_share < share
    assert found.failed_per_s == pytest.approx(found.goodput_per_s * STEP)
