"""Unified workers at bootstrap: they have no pools that move and no address for links, and need fit nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem.core.admission import check_fit, check_worker
from tandem.core.cluster import ClusterView, RankEndpoint, WorkerInfo
from tandem.core.errors import TandemError
from tandem.core.ids import RankId, Role
from tests.support.bootstrap.workers import LAYOUT, instance, worker


def unified(**changes: object) -> WorkerInfo:
    """As it registers."""
    ranks = (RankEndpoint(RankId(), ""),)
    return replace(worker("u0", Role.UNIFIED), layout=replace(LAYOUT, pools=()), ranks=ranks, **changes)


def test_it_is_let_in() -> None:
    check_worker(unified(), instance(1))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layout": LAYOUT}, "layout.pools"),
        ({"ranks": (RankEndpoint(RankId(), "127.0.0.1:5000"),)}, "ranks.kv_link_address"),
    ],
)
def test_what_would_move_is_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(TandemError) as caught:
        check_worker(replace(unified(), **changes), instance(1))
    assert caught.value.field == field


def test_any_layout_fits_beside_a_pair() -> None:
    pair = [worker("p0", Role.PREFILL), worker("d0", Role.DECODE)]
    other = unified()
    other = replace(other, layout=replace(other.layout, page_size=LAYOUT.page_size * 2))
    check_fit(other, pair)
    for one in pair:
        check_fit(one, [other])


def test_a_model_is_served_by_a_pair_or_by_a_unified_worker() -> None:
    def models(*workers: WorkerInfo) -> tuple[str, ...]:
        return ClusterView().with_snapshot(1, 1, workers).models

    model = worker("p0", Role.PREFILL).models
    assert models(worker("p0", Role.PREFILL), worker("d0", Role.DECODE)) == model
    assert models(unified()) == model
    assert models(worker("p0", Role.PREFILL)) == ()
    assert models(unified(draining=True), worker("d0", Role.DECODE)) == ()
