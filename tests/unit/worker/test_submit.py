"""What a worker checks of a Submit before it opens a room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId
from tandem.core.layout import KvLayout
from tandem.engine.port import EngineFacts, RankInfo
from tandem.engine.worker.submit import check, job_of
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
    check(message, FACTS)
    job = job_of(message, 50.0, dp_rank=0, peer_dp_rank=0, peer_addresses={})
    assert (job.room, job.deadline, job.input_ids) == (77, 51.0, [1, 2, 3])
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.stop) == (0.0, None, ("x",))
    assert job.logprobs is None


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
        (_set("model", "other"), "model", ErrorReason.UNKNOWN_MODEL),
    ],
)
def test_a_bad_field_is_named(spoil: Callable[[session_pb2.Submit], None], field: str, reason: ErrorReason) -> None:
    message = _submit()
    spoil(message)
    with pytest.raises(TandemError) as caught:
        check(message, FACTS)
    assert (caught.value.field, caught.value.reason) == (field, reason)
