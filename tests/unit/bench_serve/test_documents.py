"""Results as JSON, and two of them side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tandem.cli.bench_serve.compare import Verdict, differences, rows
from tandem.cli.bench_serve.confidence import Method
from tandem.cli.bench_serve.document import SCHEMA, ClientCost, Repeat, Result, from_json, result_of, to_json
from tandem.cli.bench_serve.numbers import DROPPED, Outcome, Slo
from tandem.core.errors import TandemError


def repeat(seed: int, slower: float = 1.0, count: int = 40) -> Repeat:
    dice = np.random.default_rng(seed)
    outcomes = []
    for number in range(count):
        ttft, gap = float(dice.uniform(50, 500)) * slower, float(dice.uniform(5, 15)) * slower
        sent = number * 0.1
        ended = sent + (ttft + 3 * gap) / 1000
        outcomes.append(Outcome(sent, sent, ended, 4, "", ttft, (gap,) * 3, prompt_tokens=9, new_tokens=4))
    outcomes[3] = Outcome(0.3, 0.3, 0.3, 4, DROPPED)
    return Repeat(seed, tuple(outcomes), ClientCost(0.2, 5))


def result(*repeats: Repeat, **settings: object) -> Result:
    target = {"url": "http://x", "api": "completions", "model": "m"}
    return result_of(target, settings, "2026-11-28T00:00:00Z", repeats, Slo({"ttft": 300.0}))


def test_what_is_written_is_read() -> None:
    made = result(repeat(1), repeat(2), rate=5, workload="chat")
    text = to_json(made)
    assert from_json(text, "a.json") == made
    document = json.loads(text)
    assert document["schema"] == SCHEMA
    interval = document["numbers"]["ttft_ms.p50"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert document["repeats"][0]["requests"]["error"][3] == DROPPED
    assert document["repeats"][0]["client"] == {"cpu_share": 0.2, "left_out": 5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "tandem.bench.serve/0"}', f'{{"schema": "{SCHEMA}"}}'])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(TandemError, match=r"a\.json"):
        from_json(text, "a.json")


def test_repeats_are_paired_by_seed() -> None:
    first = result(*(repeat(seed) for seed in range(4)))
    second = result(*(repeat(seed, slower=1.25) for seed in range(4)))
    found = {row.name: row for row in rows(first, second)}
    for name in ("ttft_ms.mean", "ttft_ms.p99", "itl_ms.p50", "e2e_ms.p50"):
        assert found[name].ratio.value == pytest.approx(1.25, rel=1e-3)
        assert found[name].ratio.method is Method.REPEATS
        assert found[name].verdict is Verdict.WORSE
    assert found["goodput_per_s"].verdict is Verdict.WORSE, "where higher is better, below 1 is worse"
    back = {row.name: row for row in rows(second, first)}
    assert back["ttft_ms.mean"].verdict is Verdict.BETTER


def test_one_run_each_is_paired_by_request() -> None:
    found = {row.name: row for row in rows(result(repeat(1)), result(repeat(1, slower=1.1)))}
    assert found["ttft_ms.mean"].ratio.value == pytest.approx(1.1)
    assert found["ttft_ms.mean"].ratio.method is Method.REQUESTS
    assert found["ttft_ms.mean"].verdict is Verdict.WORSE
    assert found["requests_per_s"].verdict is Verdict.UNKNOWN, "one number each has no confidence"


def test_the_same_is_no_difference_and_others_can_not_be_paired() -> None:
    one = result(repeat(1))
    assert {row.verdict for row in rows(one, one)} == {Verdict.SAME, Verdict.UNKNOWN}
    other = result(repeat(2))
    assert {row.verdict for row in rows(one, other)} == {Verdict.UNKNOWN}
    assert {row.ratio.method for row in rows(one, other)} == {Method.NONE}


def test_different_settings_are_told() -> None:
    one, other = result(repeat(1), rate=5, workload="chat"), result(repeat(1), rate=6, workload="chat", speed=2)
    assert differences(one, other) == ["rate: 5 and 6", "speed: None and 2"]
    assert differences(one, replace(other, settings=one.settings)) == []
