"""The moments of a request: how a system is slowed so that one lasts, and how it shows that it has come.

With the mock engine each moment lasts a few tenths of a second, and nothing before it takes any time: so what the
workers say of themselves fifty milliseconds later still holds when the fault strikes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tandem.v1.session_pb2 import WorkerStatus
from tests.support.faults.cells import Moment
from tests.support.faults.load import Request

CHUNK_TOKENS: Final = 256
"""Of SGLang's prefill, where it is to have several chunks."""

Statuses = Mapping[str, WorkerStatus]
"""The last status of each worker, by its name."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a moment is made, and known."""

    engine: Mapping[str, str]
    """Settings of the engine."""
    env: Mapping[str, str]
    """Settings of every process."""
    new_tokens: int
    """Length of each answer."""
    has_come: Callable[[Statuses, Sequence[Request]], bool]
    """Of a cluster that was idle, whether every worker has requests at the moment."""

    @property
    def options(self) -> list[str]:
        """For `tandem up`."""
        engine = [part for name, value in self.engine.items() for part in ("--engine-arg", f"{name}={value}")]
        return engine + [part for name, value in self.env.items() for part in ("--env", f"{name}={value}")]


def _of(statuses: Statuses, role: str) -> list[WorkerStatus]:
    return [status for name, status in statuses.items() if name.startswith(role)]


def _granted(status: WorkerStatus) -> int:
    return sum(pool.granted for pool in status.pools)


def _before_grant(statuses: Statuses, _: Sequence[Request]) -> bool:
    """Both legs of each room are open, and decode has offered no page."""
    open_everywhere = all(status.open_rooms for status in statuses.values())
    return open_everywhere and all(status.waiting and not _granted(status) for status in _of(statuses, "decode"))


def _mid_transfer(statuses: Statuses, _: Sequence[Request]) -> bool:
    """Pages are granted and have not all landed: prefill computes in no time, and each chunk is slow to land."""
    return all(_granted(status) for status in _of(statuses, "decode"))


def _on_its_way(statuses: Statuses, requests: Sequence[Request]) -> bool:
    """Prefill has said the first token, and decode has not let go of the grant: the last chunk is slow to land."""
    streams = [request for request in requests if request.stream]
    return _mid_transfer(statuses, requests) and all(one.tokens for one in streams)


def _after_complete(statuses: Statuses, requests: Sequence[Request]) -> bool:
    """Everything was handed over, and decode has said nothing beyond the first token."""
    handed_over = not any(status.open_rooms for status in _of(statuses, "prefill"))
    return handed_over and sum(status.running for status in _of(statuses, "decode")) == len(requests)


def _mid_decode(statuses: Statuses, requests: Sequence[Request]) -> bool:
    """Decode has said more than the first token, and much is left to say."""
    streams = [request for request in requests if request.stream]
    return all(status.running for status in _of(statuses, "decode")) and all(len(one.tokens) > 2 for one in streams)


ARRANGEMENTS: Final[Mapping[Moment, Arrangement]] = {
    Moment.BEFORE_GRANT: Arrangement({"decode_us_per_admission": "300000"}, {}, 4, _before_grant),
    Moment.MID_TRANSFER: Arrangement({"chunk_tokens": "64"}, {"TANDEM_RANK_FAULT_PACE_MS": "60"}, 4, _mid_transfer),
    Moment.AFTER_COMPLETE: Arrangement({"decode_us_per_step": "200000"}, {}, 3, _after_complete),
    Moment.MID_DECODE: Arrangement({"decode_us_per_step": "15000"}, {}, 40, _mid_decode),
}
"""With the mock engine."""

SGLANG: Final[Mapping[Moment, Arrangement]] = {
    Moment.MID_TRANSFER: Arrangement(
        {"chunked_prefill_size": str(CHUNK_TOKENS)}, {"TANDEM_RANK_FAULT_PACE_MS": "150"}, 32, _on_its_way
    ),
    Moment.MID_DECODE: Arrangement({}, {}, 200, _mid_decode),
}
"""With SGLang, which cannot be slowed: these two moments last long enough by themselves."""
