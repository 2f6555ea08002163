"""What `tandem bench pd` makes of its measurements."""

from __future__ import annotations

import json

import pytest

from tandem.cli.bench_pd.numbers import PD, PLAIN, SIDES, Disturbed, Load, Samples, Timing, percentile
from tandem.cli.bench_pd.report import document


def timing(ttft_ms: float, gap_ms: float = 5.0) -> Timing:
    """Of three tokens."""
    return Timing(ttft_ms, (gap_ms, gap_ms), 3, ttft_ms + 2 * gap_ms)


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.01, 1)])
def test_percentile(share: float, wanted: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == wanted


def test_one_value_is_every_percentile() -> None:
    assert {percentile([3.0], share) for share in (0.01, 0.5, 0.99)} == {3.0}


def samples(pd_short: float, pd_long: float, pd_parallel: float) -> Samples:
    """Plain SGLang takes 20 ms at 32 tokens, 400 ms at 2000, and makes 700 tok/s."""
    found = Samples()
    for side, short, long, parallel in ((PD, pd_short, pd_long, pd_parallel), (PLAIN, 20.0, 400.0, 700.0)):
        found.timings[side, 32] += [timing(short)] * 3
        found.timings[side, 2000] += [timing(long)] * 3
        found.parallel[side] += [parallel] * 3
    return found


@pytest.mark.parametrize(
    ("values", "reached"),
    [((26.0, 412.0, 630.0), [True, True, True]), ((26.1, 412.1, 629.0), [False, False, False])],
)
def test_targets(values: tuple[float, float, float], reached: list[bool]) -> None:
    assert [target.reached for target in samples(*values).targets()] == reached


def test_rows_are_by_length_then_side() -> None:
    rows = samples(25, 410, 650).rows()
    assert [(row.prompt_tokens, row.side) for row in rows] == [(32, PD), (32, PLAIN), (2000, PD), (2000, PLAIN)]
    assert rows[0].tokens_per_s == pytest.approx(200)


def disturbed(*gaps_ms: float, arrivals: int = 1, seconds: float = 2.0) -> Disturbed:
    """One stream with these gaps."""
    stream = Timing(10.0, gaps_ms, len(gaps_ms) + 1, 10.0 + sum(gaps_ms))
    return Disturbed((stream,), tuple(timing(100.0 + number) for number in range(arrivals)), seconds)


def under_load(ratios: dict[Load, tuple[float, ...]]) -> Samples:
    """Plain has an ITL p99 of 10 ms always, PD so many times that, round by round."""
    found = Samples()
    for load, each in ratios.items():
        for ratio in each:
            found.disturbed[PD, load].append(disturbed(10.0 * ratio))
            found.disturbed[PLAIN, load].append(disturbed(10.0))
    return found


def test_the_crossover_is_the_least_load_from_which_pd_is_better_in_every_round() -> None:
    found = under_load(
        {
            Load(0, 0.0): (0.5, 0.5),
            Load(64, 1.0): (2.0, 2.0),
            Load(64, 4.0): (0.9, 1.1),
            Load(2000, 0.5): (0.9, 1.0),
            Load(2000, 1.0): (0.9, 0.8),
            Load(2000, 2.0): (0.5, 0.4),
            Load(512, 1.0): (0.5, 0.5),
            Load(512, 2.0): (1.5, 0.5),
        }
    )
    assert found.crossovers() == {64: None, 512: None, 2000: 1.0}
    gains = {gain.load: (gain.lowest, gain.median, gain.highest) for gain in found.gains()}
    assert gains[Load(64, 4.0)] == pytest.approx((0.9, 1.0, 1.1))


def test_a_row_of_disturbed_streams() -> None:
    found, load = Samples(), Load(2000, 0.5)
    found.disturbed[PD, load] += [disturbed(5.0, 7.0, arrivals=2), disturbed(5.0, 9.0, arrivals=0)]
    found.disturbed[PLAIN, load] += [disturbed(6.0, 8.0, arrivals=0)] * 2
    ours, plain = found.disturbed_rows()
    assert (ours.load, ours.itl_p50_ms, ours.itl_p99_ms, ours.itl_max_ms) == ("2000 tokens, 0.5/s", 5.0, 8.0, 9.0)
    assert (ours.arrivals, ours.ttft_p50_ms, ours.ttft_p99_ms, ours.tokens_per_s) == (2, 100.0, 101.0, 1.5)
    assert (plain.side, plain.arrivals, plain.ttft_p50_ms) == (PLAIN, 0, None)


def test_where_the_time_of_a_request_goes() -> None:
    found = Samples()
    for side in SIDES:
        found.timings[side, 32] += [timing(30.0), timing(30.0)]
    part = found.parts()[0]
    assert (part.side, part.prefill_ms, part.decode_ms, part.total_ms, part.prefill_share) == (PD, 30, 10, 40, 0.75)


def test_the_document_is_json_with_and_without_arrivals() -> None:
    found = samples(26.0, 412.0, 630.0)
    assert json.loads(json.dumps(document(found)))["disturbed"] == []
    found.disturbed.update(under_load({Load(0, 0.0): (1.0,), Load(32, 1.0): (0.5,)}).disturbed)
    shown = json.loads(json.dumps(document(found)))
    assert shown["crossovers"] == {"32": 1.0}
    assert [row["load"] for row in shown["disturbed"]] == ["undisturbed"] * 2 + ["32 tokens, 1/s"] * 2
