"""What a worker checks of a Submit before it opens a room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, Role, RoomId
from tandem.core.layout import KvLayout
from tandem.engine.port import EngineFacts, RankInfo
from tandem.engine.worker.submit import SubmitCollector, check, job_of
from tandem.rpc.continued import MAX_PARTS
from tandem.v1 import common_pb2, session_pb2

FACTS = EngineFacts(
    model="tiny",
    layout=KvLayout(16, "float32", 2, "nhd", 1, 1, ()),
    ranks=(RankInfo(RankId(), ""),),
    context_tokens=100,
    max_running=4,
    total_pages=64,
)


def _submit() -> session_pb2.Submit:
    return session_pb2.Submit(
        request_id="r-1",
        room=77,
        nonce=b"n" * 16,
        peer=common_pb2.WorkerRef(worker_id="prefill-0", incarnation=3),
        timeout_ms=1000,
        model="tiny",
        input_ids=[1, 2, 3],
        sampling=session_pb2.Sampling(max_new_tokens=97, temperature=0.0, stop=["x"]),
    )


def test_a_good_submit_becomes_a_job() -> None:
    message = _submit()
    message.sampling.logit_bias[7] = -2.5
    check(message, FACTS, Role.DECODE)
    job = job_of(message, 50.0, dp_rank=0, peer_dp_rank=0, peer_addresses={}, traceparent="")
    assert (job.room, job.deadline, job.input_ids) == (77, 51.0, [1, 2, 3])
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.stop) == (0.0, None, ("x",))
    assert job.sampling.logit_bias == ((7, -2.5),)
    assert job.logprobs is None


def test_a_unified_worker_takes_no_peer_and_the_others_need_one() -> None:
    message = _submit()
    with pytest.raises(TandemError) as caught:
        check(message, FACTS, Role.UNIFIED)
    assert caught.value.field == "peer"
    message.ClearField("peer")
    check(message, FACTS, Role.UNIFIED)
    assert job_of(message, 0.0, dp_rank=0, peer_dp_rank=0, peer_addresses={}, traceparent="").peer.worker_id == ""


def _set(field: str, value: object) -> Callable[[session_pb2.Submit], None]:
    return lambda message: setattr(message, field, value)


@pytest.mark.parametrize(
    ("spoil", "field", "reason"),
    [
        (_set("room", 0), "room", ErrorReason.INVALID_ARGUMENT),
        (_set("room", 2**63), "room", ErrorReason.INVALID_ARGUMENT),
        (_set("nonce", b"short"), "nonce", ErrorReason.INVALID_ARGUMENT),
        (_set("request_id", ""), "request_id", ErrorReason.INVALID_ARGUMENT),
        (_set("request_id", "r" * 129), "request_id", ErrorReason.INVALID_ARGUMENT),
        (_set("timeout_ms", 0), "timeout_ms", ErrorReason.INVALID_ARGUMENT),
        (_set("timeout_ms", 86_400_001), "timeout_ms", ErrorReason.INVALID_ARGUMENT),
        (lambda m: m.ClearField("peer"), "peer", ErrorReason.INVALID_ARGUMENT),
        (lambda m: m.ClearField("input_ids"), "input_ids", ErrorReason.INVALID_ARGUMENT),
        (lambda m: setattr(m.logprobs, "top", 129), "logprobs.top", ErrorReason.INVALID_ARGUMENT),
        (lambda m: setattr(m.sampling, "max_new_tokens", 0), "sampling.max_new_tokens", ErrorReason.INVALID_ARGUMENT),
        (lambda m: setattr(m.sampling, "max_new_tokens", 98), "input_ids", ErrorReason.CONTEXT_TOO_LONG),
        (
            lambda m: m.sampling.logit_bias.update(dict.fromkeys(range(1025), 1)),
            "sampling.logit_bias",
            ErrorReason.INVALID_ARGUMENT,
        ),
        (_set("model", "other"), "model", ErrorReason.UNKNOWN_MODEL),
    ],
)
def test_a_bad_field_is_named(spoil: Callable[[session_pb2.Submit], None], field: str, reason: ErrorReason) -> None:
    message = _submit()
    spoil(message)
    with pytest.raises(TandemError) as caught:
        check(message, FACTS, Role.DECODE)
    assert (caught.value.field, caught.value.reason) == (field, reason)


class Collecting:
    """A collector, and what it refused."""

    def __init__(self) -> None:
        self.refused: list[tuple[int, TandemError]] = []
        self.submits = SubmitCollector(FACTS.context_tokens, lambda room, error: self.refused.append((room, error)))

    def add(self, *parts: session_pb2.Submit) -> list[list[int]]:
        """Ids of every Submit that the parts make."""
        return [list(whole.input_ids) for part in parts if (whole := self.submits.add(part)) is not None]

    def reasons(self) -> list[tuple[int, ErrorReason]]:
        """Rooms that were refused, and why."""
        return [(room, error.reason) for room, error in self.refused]


def _part(number: int, ids: list[int], *, more: bool, room: int = 77) -> session_pb2.Submit:
    return session_pb2.Submit(room=room, input_ids=ids, part=number, more=more)


def test_parts_become_one_submit_with_the_fields_of_the_first() -> None:
    collecting, first = Collecting(), _submit()
    first.more = True
    assert collecting.submits.add(first) is None
    assert collecting.submits.add(_part(1, [4, 5], more=True)) is None
    whole = collecting.submits.add(_part(2, [6], more=False))
    assert whole is not None
    assert (list(whole.input_ids), whole.request_id) == ([1, 2, 3, 4, 5, 6], "r-1")


@pytest.mark.parametrize("number", [1, 3])
def test_a_part_out_of_order_ends_the_submit_and_the_rest_is_dropped(number: int) -> None:
    collecting = Collecting()
    collecting.add(_part(0, [1], more=True), _part(1, [2], more=True))
    assert collecting.add(_part(number, [3], more=True), _part(number + 1, [4], more=False)) == []
    assert collecting.reasons() == [(77, ErrorReason.PROTOCOL_VIOLATION)]
    assert collecting.add(_part(0, [9], more=False)) == [[9]]


def test_another_submit_between_the_parts_ends_the_unfinished_one() -> None:
    collecting = Collecting()
    other = _part(0, [9], more=False, room=78)
    assert collecting.add(_part(0, [1], more=True), other, _part(1, [2], more=False)) == [[9]]
    assert collecting.reasons() == [(77, ErrorReason.PROTOCOL_VIOLATION)]


def test_no_more_is_collected_than_the_context_holds() -> None:
    collecting = Collecting()
    half = [1] * (FACTS.context_tokens // 2)
    assert collecting.add(_part(0, half, more=True), _part(1, half, more=True)) == []
    assert collecting.refused == []
    assert collecting.add(_part(2, [1], more=True), _part(3, [1], more=False)) == []
    assert collecting.reasons() == [(77, ErrorReason.CONTEXT_TOO_LONG)]


def test_the_number_of_parts_is_bounded() -> None:
    collecting = Collecting()
    collecting.add(*(_part(number, [], more=True) for number in range(MAX_PARTS)))
    assert collecting.refused == []
    collecting.add(_part(MAX_PARTS, [], more=False))
    assert collecting.reasons() == [(77, ErrorReason.PROTOCOL_VIOLATION)]


def test_a_cancel_in_the_middle_drops_the_parts_and_answers() -> None:
    collecting = Collecting()
    why = TandemError(ErrorReason.CANCELLED, "the client has gone")
    collecting.add(_part(0, [1], more=True))
    collecting.submits.cancel(RoomId(78), why)
    collecting.submits.cancel(RoomId(77), why)
    assert collecting.reasons() == [(77, ErrorReason.CANCELLED)]
    assert collecting.add(_part(1, [2], more=False)) == []
