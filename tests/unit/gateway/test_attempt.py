"""One room on two workers: whatever one leg does, the other ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, Role
from tandem.gateway.routing.attempt import Attempt, RoomPhase
from tandem.gateway.routing.first_token import FirstToken
from tandem.rpc import convert
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import NotingWorker, finish, tokens

ROOM = 7
HANDED_OVER = session_pb2.FINISH_KIND_HANDED_OVER
LOST = TandemError(ErrorReason.PEER_LOST, "gone")


def failed(reason: ErrorReason = ErrorReason.POOL_EXHAUSTED, *, by_peer: bool = False) -> session_pb2.Delta:
    """The last delta of a room that failed."""
    failure = convert.failure_to_proto(reason, "why")
    failure.by_peer = by_peer
    return finish(ROOM, session_pb2.FINISH_KIND_FAILED, failure=failure)


@dataclass(slots=True)
class Stage:
    """An attempt that runs, and everything around it."""

    prefill: NotingWorker
    decode: NotingWorker
    got: list[session_pb2.Delta]
    attempt: Attempt
    task: asyncio.Task[TandemError | None]

    async def end(self) -> TandemError | None:
        """What the attempt ended with."""
        return await asyncio.wait_for(self.task, 10)


@asynccontextmanager
async def stage(
    logprobs: session_pb2.LogprobOptions | None = None, deliver: Callable[[session_pb2.Delta], bool] | None = None
) -> AsyncIterator[Stage]:
    """An attempt whose two submits are out."""
    prefill, decode = NotingWorker("p0", Role.PREFILL), NotingWorker("d0", Role.DECODE)
    got: list[session_pb2.Delta] = []

    def take(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return True

    attempt = Attempt(session_pb2.Submit(room=ROOM, logprobs=logprobs), prefill, decode, deliver or take, FirstToken())
    task = asyncio.create_task(attempt.run())
    await prefill.next_submit()
    yield Stage(prefill, decode, got, attempt, task)
    task.cancel()
    await asyncio.wait({task})
    assert not prefill.legs, "a leg was left behind on prefill"
    assert not decode.legs, "a leg was left behind on decode"


async def test_both_legs_get_the_same_submit_but_for_the_peer() -> None:
    async with stage() as now:
        [to_prefill], [to_decode] = now.prefill.submits, now.decode.submits
        assert to_prefill.peer.worker_id == "d0"
        assert to_decode.peer.worker_id == "p0"
        to_prefill.ClearField("peer")
        to_decode.ClearField("peer")
        assert to_prefill == to_decode


async def test_tokens_come_from_decode_in_order() -> None:
    async with stage() as now:
        now.decode.bring(tokens(ROOM, 1, text="a"))
        now.prefill.bring(finish(ROOM, HANDED_OVER))
        now.decode.bring(tokens(ROOM, 2, text="b"))
        now.decode.bring(finish(ROOM))
        assert await now.end() is None
        assert [list(delta.token_ids) for delta in now.got] == [[1], [2], []]
        assert not now.prefill.cancelled
        assert not now.decode.cancelled


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("how", ["finish", "loss"])
async def test_a_failure_of_one_leg_cancels_the_other_at_once(side: str, how: str) -> None:
    async with stage() as now:
        bad, good = (now.prefill, now.decode) if side == "prefill" else (now.decode, now.prefill)
        if how == "finish":
            bad.bring(failed())
        else:
            bad.lose(LOST)
        # No await between the failure and this: the Cancel is out before anything else can happen.
        assert good.cancelled[ROOM].reason in (ErrorReason.POOL_EXHAUSTED, ErrorReason.PEER_LOST)
        error = await now.end()
        assert error is not None
        assert error.reason is (ErrorReason.POOL_EXHAUSTED if how == "finish" else ErrorReason.PEER_LOST)
        assert not now.attempt.delivered


@pytest.mark.parametrize("side", PAIR)
async def test_the_leg_that_failed_is_blamed_whoever_says_so_first(side: Role) -> None:
    for reporter in PAIR:
        async with stage() as now:
            says = now.prefill if reporter is Role.PREFILL else now.decode
            says.bring(failed(ErrorReason.ENGINE_FAILED, by_peer=reporter is not side))
            assert await now.end() is not None
            assert now.attempt.end.blamed is side


@pytest.mark.parametrize("reporter", PAIR)
async def test_nobody_is_blamed_for_what_lies_between_the_two(reporter: Role) -> None:
    async with stage() as now:
        says = now.prefill if reporter is Role.PREFILL else now.decode
        says.bring(failed(ErrorReason.LINK_LOST))
        assert await now.end() is not None
        assert now.attempt.end.blamed is None


@pytest.mark.parametrize("side", PAIR)
async def test_a_lost_or_refusing_worker_is_blamed_itself(side: Role) -> None:
    async with stage() as now:
        (now.prefill if side is Role.PREFILL else now.decode).lose(LOST)
        assert await now.end() is LOST
        assert now.attempt.end.blamed is side
    prefill, decode = NotingWorker("p0", Role.PREFILL), NotingWorker("d0", Role.DECODE)
    (prefill if side is Role.PREFILL else decode).refuses = LOST
    attempt = Attempt(session_pb2.Submit(room=ROOM), prefill, decode, lambda _: True, FirstToken())
    assert await attempt.run() is LOST
    assert attempt.end.blamed is side


async def test_a_refused_submit_cancels_the_other_leg() -> None:
    prefill, decode = NotingWorker("p0", Role.PREFILL), NotingWorker("d0", Role.DECODE)
    prefill.refuses = TandemError(ErrorReason.OVERLOADED)
    error = await Attempt(session_pb2.Submit(room=ROOM), prefill, decode, lambda _: True, FirstToken()).run()
    assert error is prefill.refuses
    assert list(decode.cancelled) == [ROOM]


async def test_losing_prefill_after_the_first_token_changes_nothing() -> None:
    async with stage() as now:
        now.decode.bring(tokens(ROOM, 1))
        now.prefill.lose(LOST)
        now.decode.bring(finish(ROOM))
        assert await now.end() is None


async def test_prefills_first_token_does_not_wait_for_decode() -> None:
    async with stage() as now:
        now.prefill.bring(tokens(ROOM, 1, text="a"))
        assert [delta.text for delta in now.got] == ["a"]
        now.decode.bring(tokens(ROOM, 1, text="a"))
        now.prefill.bring(finish(ROOM, HANDED_OVER))
        now.decode.bring(tokens(ROOM, 2, text="b"))
        now.decode.bring(finish(ROOM))
        assert await now.end() is None
        assert [delta.text for delta in now.got] == ["a", "b", ""]


async def test_losing_a_worker_after_prefills_first_token_can_be_repeated() -> None:
    async with stage() as now:
        now.prefill.bring(tokens(ROOM, 1, text="a"))
        now.prefill.lose(LOST)
        assert await now.end() is LOST
        assert not now.attempt.delivered
        assert list(now.decode.cancelled) == [ROOM]


async def test_a_decode_that_begins_otherwise_than_prefill_said_ends_the_room() -> None:
    async with stage() as now:
        now.prefill.bring(tokens(ROOM, 1, text="a"))
        now.decode.bring(tokens(ROOM, 2, text="b"))
        error = await now.end()
        assert error is not None
        assert error.reason is ErrorReason.TRANSFER_FAILED
        assert [delta.text for delta in now.got] == ["a"]


async def test_losing_decode_after_the_first_token_is_a_failure_that_cannot_be_repeated() -> None:
    async with stage() as now:
        now.decode.bring(tokens(ROOM, 1))
        now.decode.lose(LOST)
        assert await now.end() is LOST
        assert now.attempt.delivered
        assert list(now.prefill.cancelled) == [ROOM]


async def test_cancelling_cancels_both_legs() -> None:
    async with stage() as now:
        now.task.cancel()
        await asyncio.wait({now.task})
        assert now.prefill.cancelled[ROOM].reason is ErrorReason.CANCELLED
        assert now.decode.cancelled[ROOM].reason is ErrorReason.CANCELLED


async def test_a_client_too_far_behind_ends_the_room() -> None:
    async with stage(deliver=lambda _: False) as now:
        now.decode.bring(tokens(ROOM, 1))
        error = await now.end()
        assert error is not None
        assert error.reason is ErrorReason.OVERLOADED
        assert list(now.decode.cancelled) == [ROOM]


async def test_nothing_follows_an_end_in_the_middle_of_the_tokens() -> None:
    async with stage() as now:
        leg = now.decode.legs[ROOM]
        for token in (1, 2, 3):
            leg.on_delta(tokens(ROOM, token))
        assert now.attempt.end.give_up(LOST)
        leg.on_delta(tokens(ROOM, 4))
        assert await now.end() is LOST
        assert [list(delta.token_ids) for delta in now.got] == [[1], [2], [3]]


async def test_a_client_that_falls_behind_in_the_middle_of_its_tokens_ends_the_room() -> None:
    got: list[session_pb2.Delta] = []

    def take_three(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return len(got) <= 3

    async with stage(deliver=take_three) as now:
        for token in (1, 2, 3, 4):
            now.decode.bring(tokens(ROOM, token))
        error = await now.end()
        assert error is not None
        assert error.reason is ErrorReason.OVERLOADED
        assert now.attempt.end.final


async def test_the_answer_waits_for_the_prompts_log_probabilities() -> None:
    async with stage(logprobs=session_pb2.LogprobOptions(prompt=True)) as now:
        now.decode.bring(tokens(ROOM, 1))
        now.decode.bring(finish(ROOM))
        assert not now.task.done()
        assert len(now.got) == 1
        logprob = session_pb2.TokenLogprob(token_id=5, logprob=-1.0)
        now.prefill.bring(
            session_pb2.Delta(room=ROOM, prompt_logprobs=[logprob], finish=session_pb2.Finish(kind=HANDED_OVER))
        )
        assert await now.end() is None
        assert [len(delta.prompt_logprobs) for delta in now.got] == [0, 1, 0]
        assert now.got[-1].HasField("finish")


async def test_log_probabilities_that_never_come_do_not_hang_the_answer() -> None:
    async with stage(logprobs=session_pb2.LogprobOptions(prompt=True)) as now:
        now.decode.bring(tokens(ROOM, 1))
        now.decode.bring(finish(ROOM))
        now.prefill.lose(LOST)
        assert await now.end() is None
        assert now.got[-1].HasField("finish")


async def test_its_phase_follows_what_the_legs_bring() -> None:
    async with stage() as now:
        assert now.attempt.phase is RoomPhase.SUBMITTED
        now.prefill.bring(tokens(ROOM, 5, text="a"))
        assert now.attempt.phase is RoomPhase.FIRST_TOKEN
        now.decode.bring(tokens(ROOM, 5, 6, text="ab"))
        assert now.attempt.phase is RoomPhase.DECODING
        now.decode.bring(finish(ROOM))
        assert await now.end() is None
