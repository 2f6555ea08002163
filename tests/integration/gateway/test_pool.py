"""Which workers a gateway talks to, and which it keeps while bootstrap is out of reach."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest

from tandem.core.cluster import ClusterView
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, RoomId, WorkerId
from tandem.gateway.routing.pool import PoolSettings, SessionPool, State
from tandem.gateway.routing.sessions import Session
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tests.support.bootstrap.workers import worker

DECODE = worker("d0", Role.DECODE, incarnation=1)
OTHER = worker("d1", Role.DECODE, incarnation=2)
FULL = ClusterView().with_snapshot(1, 1, [DECODE, OTHER])


@dataclass(slots=True)
class Watch:
    """What bootstrap says."""

    view: ClusterView
    connected: bool


def pool_of(watch: Watch) -> SessionPool:
    """A pool whose workers cannot be reached."""
    settings = PoolSettings("gateway-test", 16, 200)
    pool = SessionPool(settings, lambda _: open_channel("127.0.0.1:1"), rng=random.Random(1))
    pool.follow(lambda: watch.view, lambda: watch.connected)
    pool.joined(DECODE)
    pool.joined(OTHER)
    return pool


async def test_a_worker_that_bootstrap_strikes_off_is_dropped() -> None:
    watch = Watch(FULL, connected=True)
    pool = pool_of(watch)
    watch.view = ClusterView().with_snapshot(1, 2, [OTHER])
    pool.left(DECODE.life)
    watch.view = FULL
    assert pool.member_of(WorkerId("d0")) is None
    assert pool.member_of(WorkerId("d1")) is not None
    await pool.close()


async def test_workers_are_kept_while_bootstrap_is_away_and_dropped_if_they_do_not_come_back() -> None:
    watch = Watch(FULL, connected=True)
    pool = pool_of(watch)
    watch.connected, watch.view = False, ClusterView()
    for info in (DECODE, OTHER):
        pool.left(info.life)
    watch.view = FULL
    kept = pool.member_of(WorkerId("d1"))
    assert kept is not None, "a Session may still be good"
    watch.connected, watch.view = True, ClusterView().with_snapshot(2, 1, [OTHER])
    pool.joined(OTHER)
    watch.view = FULL
    assert pool.member_of(WorkerId("d1")) == kept
    assert pool.member_of(WorkerId("d0")) is None
    await pool.close()


async def test_a_worker_beyond_loopback_is_left_out_where_none_may_be_dialled_and_others_are_not() -> None:
    far = replace(DECODE, address="192.0.2.7:5")
    near = replace(OTHER, address="127.0.0.1:1")
    view = ClusterView().with_snapshot(1, 1, [far, near])
    only_here = partial(open_channel, credentials=Credentials(loopback_only=True))
    pool = SessionPool(PoolSettings("gateway-test", 16, 200), only_here, rng=random.Random(1))
    pool.follow(lambda: view, lambda: True)
    pool.joined(far)
    pool.joined(near)
    assert pool.member_of(far.life.worker_id) is None
    assert pool.member_of(near.life.worker_id) is not None
    assert [one.state for one in pool.standings()] == [State.LOST, State.LOST]
    pool.left(far.life)
    await pool.close()


class Leg:
    """A room that runs."""

    def __init__(self) -> None:
        self.lost: list[ErrorReason] = []

    def on_delta(self, delta: object) -> None:
        """Not in these tests."""

    def on_lost(self, error: TandemError) -> None:
        self.lost.append(error.reason)


def left_with_a_room(*, draining: bool) -> tuple[SessionPool, Session, Leg]:
    """A pool whose worker has just left, and what it had of it."""
    watch = Watch(FULL, connected=True)
    pool, leg = pool_of(watch), Leg()
    pool.changed(replace(DECODE, draining=draining))
    session = pool._members[DECODE.life].session
    session._outbox = cast("Any", object())
    session._legs[5] = leg
    watch.view = ClusterView().with_snapshot(1, 2, [OTHER])
    pool.left(DECODE.life)
    return pool, session, leg


@pytest.mark.parametrize("draining", [True, False])
async def test_what_a_worker_that_has_drained_says_last_is_heard_and_nobody_else_is_waited_for(draining: bool) -> None:
    pool, session, leg = left_with_a_room(draining=draining)
    assert pool._members.get(DECODE.life) is None, "it gets no more rooms"
    assert leg.lost == ([] if draining else [ErrorReason.PEER_LOST])
    if draining:
        await asyncio.sleep(0)
        assert session.up
        session.forget(RoomId(5))
        async with asyncio.timeout(10):
            while session.up:  # noqa: ASYNC110 - the pool has no event for that
                await asyncio.sleep(0.001)
        assert leg.lost == []
    await pool.close()


async def test_the_last_words_of_a_worker_that_drained_are_waited_for_no_longer_than_the_gateway_lives() -> None:
    pool, _, leg = left_with_a_room(draining=True)
    await asyncio.sleep(0)
    await pool.close()
    assert leg.lost == [ErrorReason.PEER_LOST]
