"""What `tandem bench pd` makes of its measurements."""

from __future__ import annotations

import pytest

from tandem.cli.bench_pd.numbers import PD, PLAIN, Samples, Timing, percentile


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
