"""Every room gets its one Finish, every page comes back, and nothing waits without bound."""

from __future__ import annotations

import asyncio

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, RankId, Role
from tandem.core.room.events import Phase, Why
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.leases import Leases
from tandem.engine.port import Delta, FinishKind, LogprobOptions, Sampling
from tests.support.mock.pair import DECODE, PREFILL, Leg, Pair, oracle_of, prompt_of, settings_of
from tests.support.mock.ranks import Wire

LONG = Sampling(max_new_tokens=40, ignore_eos=True)
CANCELLED = Why(ErrorReason.CANCELLED, "the client left")


async def turns(count: int = 20) -> None:
    """Lets everything that is ready on the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def refused(pair: Pair, role: Role, prompt: list[int], sampling: Sampling = LONG, **changes) -> TandemError:
    """The error of a submit that must not go through; and that no news follow."""
    engine = pair.decode if role is Role.DECODE else pair.prefill
    leg = Leg(pair.new_room())
    with pytest.raises(TandemError) as caught:
        await engine.submit(pair.job(role, leg.room, prompt, sampling, **changes), leg.sink)
    await turns()
    assert leg.deltas == []
    return caught.value


async def test_facts(start_pair) -> None:
    pair = Pair(settings_of(tp_size=2, pages=32), Wire().make)
    facts = await pair.decode.start()
    assert [info.rank for info in facts.ranks] == [RankId(tp=0), RankId(tp=1)]
    assert (facts.layout.tp_size, facts.layout.page_size, facts.total_pages) == (2, 4, 32)
    assert [pool.name for pool in facts.layout.pools] == ["kv", "metadata"]
    assert facts.layout.pools[0].item_bytes == (64, 64, 64, 64)
    await pair.decode.close()


async def test_many_rooms_at_once_on_few_pages(start_pair) -> None:
    pair = await start_pair(pages=64, max_waiting=64)
    oracle = oracle_of(pair.settings)
    prompts = [prompt_of(seed, 5 + 3 * seed) for seed in range(24)]
    rooms = [await pair.ask(prompt, LONG) for prompt in prompts]
    for room, prompt in zip(rooms, prompts, strict=True):
        assert (await room.decode.finish()).kind is FinishKind.LENGTH
        assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
        assert room.decode.tokens == oracle.predict(prompt, 40, ignore_eos=True).tokens
    prefill, decode = await pair.idle()
    assert (prefill.rooms_succeeded, decode.rooms_succeeded) == (24, 24)
    assert decode.kv_bytes == sum(-(-len(prompt) // 4) for prompt in prompts) * 4 * 64


async def test_one_step_gives_each_running_room_one_token(start_pair) -> None:
    pair = await start_pair()
    first, second = [await pair.ask(prompt_of(seed, 6), LONG) for seed in (1, 2)]
    await first.decode.finish()
    await second.decode.finish()
    for room in (first, second):
        assert all(len(delta.token_ids) == 1 for delta in room.decode.deltas)
        assert len(room.decode.deltas) == 40


async def test_who_comes_during_a_step_is_in_the_next_one(start_pair) -> None:
    pair, said = await start_pair(decode_us_per_step=1000), list[str]()
    first, second = Leg(pair.new_room()), Leg(pair.new_room())
    for name, leg in (("a", first), ("b", second)):

        def sink(delta: Delta, name: str = name, leg: Leg = leg) -> None:
            said.append(name)
            leg.sink(delta)

        prompt = prompt_of(1, 6)
        await pair.decode.submit(pair.job(Role.DECODE, leg.room, prompt, LONG), sink)
        await pair.prefill.submit(pair.job(Role.PREFILL, leg.room, prompt, LONG), Leg(leg.room).sink)
        await leg.began.wait()
    await second.finish()
    come = said.index("b")
    assert said[come : come + 5] == ["b", "a", "a", "b", "a"], "b's first token, a step without b, steps with it"


async def test_rooms_that_find_no_pages_wait_in_order(start_pair) -> None:
    pair = await start_pair(pages=12)  # each room needs 12
    rooms = [await pair.ask(prompt_of(seed, 8), LONG) for seed in range(4)]
    ended: list[int] = []

    async def follow(room) -> None:
        await room.decode.finish()
        ended.append(room.room)

    await asyncio.gather(*(follow(room) for room in rooms))
    assert ended == [room.room for room in rooms]
    for room in rooms:
        await room.prefill.finish()
    await pair.idle()


async def test_queue_is_bounded(start_pair, wire: Wire) -> None:
    wire.linked = False
    pair = await start_pair(max_waiting=3)
    legs = [Leg(pair.new_room()) for _ in range(3)]
    for leg in legs:
        await pair.decode.submit(pair.job(Role.DECODE, leg.room, [1, 2], LONG), leg.sink)
    assert (await pair.decode.status()).waiting == 3
    assert (await refused(pair, Role.DECODE, [1, 2])).reason is ErrorReason.OVERLOADED
    assert await pair.decode.abort(legs[0].room, CANCELLED)
    assert (await legs[0].finish()).why == CANCELLED
    again = Leg(pair.new_room())
    await pair.decode.submit(pair.job(Role.DECODE, again.room, [1, 2], LONG), again.sink)


@pytest.mark.parametrize(
    ("role", "prompt", "sampling", "changes", "reason"),
    [
        (Role.DECODE, [], LONG, {}, ErrorReason.INVALID_ARGUMENT),
        (Role.PREFILL, [1, -1], LONG, {}, ErrorReason.INVALID_ARGUMENT),
        (Role.PREFILL, [2**32], LONG, {}, ErrorReason.INVALID_ARGUMENT),
        (Role.DECODE, [1] * 200, LONG, {}, ErrorReason.CONTEXT_TOO_LONG),
        (Role.PREFILL, [1] * 200, LONG, {}, ErrorReason.CONTEXT_TOO_LONG),
        (Role.DECODE, [1] * 30, LONG, {}, ErrorReason.POOL_EXHAUSTED),
        (Role.PREFILL, [1] * 70, LONG, {}, ErrorReason.POOL_EXHAUSTED),
        (Role.DECODE, [1], Sampling(max_new_tokens=0), {}, ErrorReason.INVALID_ARGUMENT),
        (Role.DECODE, [1], Sampling(max_new_tokens=3, regex="a+"), {}, ErrorReason.NOT_SUPPORTED),
        (Role.PREFILL, [1], Sampling(max_new_tokens=3, logit_bias=((5, 1.0),)), {}, ErrorReason.NOT_SUPPORTED),
        (Role.DECODE, [1], LONG, {"dp_rank": 1}, ErrorReason.INVALID_ARGUMENT),
        (Role.DECODE, [1], LONG, {"peer_addresses": {}}, ErrorReason.INVALID_ARGUMENT),
    ],
)
async def test_what_can_never_run_is_refused(start_pair, role, prompt, sampling, changes, reason) -> None:
    pair = await start_pair(pages=16)
    error = await refused(pair, role, prompt, sampling, **changes)
    assert error.reason is reason
    await pair.idle()


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [("frequency_penalty", 0.5, 0.0), ("presence_penalty", -0.5, 0.0), ("repetition_penalty", 1.5, 1.0)],
)
async def test_a_penalty_is_refused_by_name_unless_it_asks_for_nothing(start_pair, name, value, neutral) -> None:
    pair = await start_pair()
    error = await refused(pair, Role.DECODE, [1], Sampling(max_new_tokens=3, **{name: value}))
    assert (error.reason, error.field) == (ErrorReason.NOT_SUPPORTED, name)
    assert f"'{name}'" in error.message
    room = await pair.ask([1, 2, 3], Sampling(max_new_tokens=3, **{name: neutral}))
    assert (await room.decode.finish()).kind is FinishKind.LENGTH


async def test_a_room_is_opened_once(start_pair) -> None:
    pair = await start_pair()
    room = await pair.ask([1, 2, 3], LONG)
    with pytest.raises(TandemError) as caught:
        await pair.decode.submit(pair.job(Role.DECODE, room.room, [1], LONG), room.decode.sink)
    assert caught.value.reason is ErrorReason.ROOM_EXISTS
    assert (await room.decode.finish()).kind is FinishKind.LENGTH


@pytest.mark.parametrize("turns_before", [0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 24])
@pytest.mark.parametrize("role", PAIR)
async def test_abort_at_any_moment(start_pair, turns_before: int, role: Role) -> None:
    pair = await start_pair(tp_size=2, chunk_tokens=4)
    room = await pair.ask(prompt_of(3, 30), LONG)
    await turns(turns_before)
    engine, leg = (pair.prefill, room.prefill) if role is Role.PREFILL else (pair.decode, room.decode)
    known = await engine.abort(room.room, CANCELLED)
    assert known is not (leg.ended.is_set() and leg.deltas[-1].finish.kind is not FinishKind.FAILED)
    if known:
        finish = await leg.finish()
        assert finish.kind is FinishKind.FAILED
        assert finish.why == CANCELLED
    assert not await engine.abort(room.room, CANCELLED)
    await room.prefill.finish()
    await room.decode.finish()
    await turns()
    await pair.idle()


async def test_abort_stops_prefill_within_a_chunk(start_pair, wire: Wire) -> None:
    pair = await start_pair(chunk_tokens=4)
    room = await pair.ask(prompt_of(3, 120), LONG)
    await turns(5)
    await pair.prefill.abort(room.room, CANCELLED)
    pushed = len(wire.pushes)
    assert 1 <= pushed <= 5
    await room.prefill.finish()
    await turns(60)
    assert len(wire.pushes) == pushed
    await pair.idle()


async def test_chunks_are_pushed_as_they_are_finished(start_pair, wire: Wire) -> None:
    pair = await start_pair(chunk_tokens=6)
    room = await pair.ask(prompt_of(3, 20), LONG)
    await room.decode.finish()
    assert [(pages, last) for _, _, pages, last in wire.pushes] == [(1, False), (2, False), (1, False), (1, True)]


async def test_layers_are_pushed_as_they_are_finished(start_pair, wire: Wire) -> None:
    pair = await start_pair(chunk_tokens=12, layers=3, layers_per_push=2)
    room = await pair.ask(prompt_of(3, 20), LONG)
    await room.decode.finish()
    assert [(pages, last) for _, _, pages, last in wire.pushes] == [(3, False), (3, False), (2, False), (2, True)]


async def test_pages_come_back_only_when_every_rank_is_quiet(start_pair, wire: Wire) -> None:
    pair = await start_pair(tp_size=2, pages=12)
    wire.holding = True
    room = await pair.ask(prompt_of(1, 8), LONG)
    await turns()
    (pool, rows) = (await pair.decode.status()).pools
    assert (pool.free, pool.granted, rows.granted) == (0, 2, 1)
    ours = [wire.rooms[(Role.DECODE, RankId(tp=tp), room.room)] for tp in (0, 1)]
    # One rank fails and is quiet at once; the other one's fence hangs.
    ours[0].giving_up = True
    ours[0].turn(Phase.FAILED, Why(ErrorReason.LINK_LOST, "the link broke"))
    await turns()
    assert not room.decode.ended.is_set()
    assert (await pair.decode.status()).pools[0].free == 0
    wire.release()
    finish = await room.decode.finish()
    assert finish.why == Why(ErrorReason.LINK_LOST, "the link broke")
    await room.prefill.finish()
    await pair.idle()


async def test_a_rank_that_takes_no_ticket_ends_the_others(start_pair, wire: Wire) -> None:
    pair = await start_pair(tp_size=2)
    wire.refuse_tickets = (Role.DECODE, RankId(tp=1))
    error = await refused(pair, Role.DECODE, [1, 2, 3])
    assert error.reason is ErrorReason.OVERLOADED
    await turns()
    await pair.idle()
    assert all(room.phase is Phase.FAILED for room in wire.rooms.values())


async def test_a_cancelled_submit_leaves_nothing(start_pair, wire: Wire) -> None:
    pair = await start_pair(tp_size=2)
    leg = Leg(pair.new_room())
    submit = asyncio.create_task(pair.decode.submit(pair.job(Role.DECODE, leg.room, [1, 2], LONG), leg.sink))
    await turns(2)
    submit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submit
    await turns()
    assert leg.deltas == []
    await pair.idle()


@pytest.mark.parametrize("linked", [True, False])
async def test_deadline_ends_a_room(start_pair, wire: Wire, linked: bool) -> None:
    wire.linked = linked
    pair = await start_pair(decode_us_per_step=3_600e6 / 100)
    room = await pair.ask([1, 2, 3], LONG, timeout_s=0.05)
    finish = await room.decode.finish()
    assert finish.why is not None
    assert finish.why.reason is ErrorReason.DEADLINE_EXCEEDED
    assert finish.completion_tokens == (1 if linked else 0)
    await room.prefill.finish()
    await pair.idle()


async def test_a_lost_peer_fails_what_still_needs_it(start_pair, wire: Wire) -> None:
    pair = await start_pair(decode_us_per_step=36e6)
    running = await pair.ask([1, 2, 3], LONG)
    await running.prefill.finish()
    wire.holding = True
    moving = await pair.ask([4, 5, 6], LONG)
    await turns()
    pair.decode.peer_gone(PREFILL)
    pair.prefill.peer_gone(DECODE)
    wire.release()
    for leg in (moving.decode, moving.prefill):
        assert (await leg.finish()).why.reason is ErrorReason.PEER_LOST
    assert not running.decode.ended.is_set()
    assert (await pair.decode.status()).running == 1


async def test_close_ends_every_room_and_is_idempotent(start_pair, wire: Wire) -> None:
    pair = await start_pair(pages=24, decode_us_per_step=36e6, max_waiting=16)
    rooms = [await pair.ask(prompt_of(seed, 8), LONG) for seed in range(5)]
    await turns()
    await asyncio.gather(pair.decode.close(), pair.decode.close(), pair.prefill.close())
    await pair.decode.close()
    for room in rooms:
        assert (await room.decode.finish()).why.reason is ErrorReason.DRAINING
        assert (await room.prefill.finish()).kind in (FinishKind.HANDED_OVER, FinishKind.FAILED)
    assert (await refused(pair, Role.DECODE, [1])).reason is ErrorReason.DRAINING


async def test_close_does_not_wait_for_ever(start_pair, wire: Wire) -> None:
    pair = await start_pair(close_timeout_ms=20)
    wire.holding = True
    room = await pair.ask([1, 2, 3], LONG)
    await turns()
    await pair.decode.close()
    assert (await room.decode.finish()).kind is FinishKind.FAILED


async def test_a_sink_that_aborts_a_room_of_the_same_step(start_pair) -> None:
    pair = await start_pair()
    book = pair.decode._running().book
    number = pair.new_room()
    first, doomed = Leg(number), Leg(pair.new_room())

    def sink(delta) -> None:
        first.sink(delta)
        if len(doomed.deltas) == 3:
            book.fail(book.legs[doomed.room], CANCELLED)

    # `first` comes first in the batch, so the step that aborts `doomed` still has it on its list.
    for leg, leg_sink in ((first, sink), (doomed, doomed.sink)):
        await pair.decode.submit(pair.job(Role.DECODE, leg.room, [7, 8], LONG), leg_sink)
        await pair.prefill.submit(pair.job(Role.PREFILL, leg.room, [7, 8], LONG), Leg(leg.room).sink)
    assert (await first.finish()).kind is FinishKind.LENGTH
    assert (await doomed.finish()).why == CANCELLED
    assert len(doomed.tokens) == 3


async def test_idle_engine_sleeps(start_pair) -> None:
    pair = await start_pair()
    room = await pair.ask([1, 2, 3], LONG)
    await room.decode.finish()
    await room.prefill.finish()
    await turns()
    loop = asyncio.get_running_loop()
    # Nothing is ready to run: the schedulers wait on their events.
    assert len(loop._ready) == 0  # type: ignore[attr-defined]


async def test_a_crash_of_the_scheduler_fails_the_engine_and_its_rooms(start_pair) -> None:
    pair = await start_pair()
    number = pair.new_room()
    taken: list[Delta] = []

    def sink(delta: Delta) -> None:
        taken.append(delta)
        if len(taken) == 2:
            raise RuntimeError("a bug")

    await pair.decode.submit(pair.job(Role.DECODE, number, [9], LONG), sink)
    await pair.prefill.submit(pair.job(Role.PREFILL, number, [9], LONG), Leg(number).sink)
    error = await asyncio.wait_for(pair.decode.wait_failed(), 5)
    assert error.reason is ErrorReason.ENGINE_FAILED
    assert taken[-1].finish is not None
    assert taken[-1].finish.why is not None
    assert taken[-1].finish.why.reason is ErrorReason.ENGINE_FAILED
    assert (await refused(pair, Role.DECODE, [1])).reason is ErrorReason.ENGINE_FAILED


async def test_a_rank_that_does_not_start(start_pair) -> None:
    class Broken(Wire):
        def make(self, role, rank, layout, pools):
            double = super().make(role, rank, layout, pools)
            if rank.tp == 1:

                async def start():
                    raise TandemError(ErrorReason.INTERNAL, "no memory could be registered")

                double.start = start
            made.append(double)
            return double

    made: list = []
    engine = MockEngine(settings_of(tp_size=2), Role.DECODE, Broken().make)
    with pytest.raises(TandemError) as caught:
        await engine.start()
    assert caught.value.reason is ErrorReason.ENGINE_FAILED
    assert "no memory could be registered" in caught.value.message
    assert all(double.closed for double in made)
    await engine.close()


def test_leases_count_and_refuse_a_second_free() -> None:
    leases = Leases(pages=4, rows=2, page_size=4, limit=2)
    first = leases.take(5)
    assert first is not None
    assert (leases.pages.free, leases.rows.free, leases.count) == (2, 1, 1)
    assert leases.take(12) is None
    second = leases.take(8)
    assert second is not None
    assert leases.take(1) is None
    assert set(first.pages.tolist()) | set(second.pages.tolist()) == {0, 1, 2, 3}
    leases.give(first)
    leases.give(second)
    assert (leases.pages.free, leases.rows.free, leases.count) == (4, 2, 0)
    with pytest.raises(AssertionError, match="freed twice"):
        leases.give(first)


async def test_logprobs_are_left_out_unless_asked_for(start_pair) -> None:
    pair = await start_pair()
    plain = await pair.ask([1, 2, 3], LONG)
    asked = await pair.ask([1, 2, 3], LONG, logprobs=LogprobOptions(top=0))
    await plain.decode.finish()
    await asked.decode.finish()
    assert all(delta.logprobs == () for delta in plain.decode.deltas)
    assert all(len(delta.logprobs) == 1 and delta.logprobs[0].top == () for delta in asked.decode.deltas)
    assert plain.decode.text == asked.decode.text
