"""A system that serves over verbs in the RDMA guest, where an emulated processor is late with everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.sglang_over_verbs import PATIENT
from tandem.rdma import Direction
from tests.support.faults.cells import Moment
from tests.support.faults.experiment import Stage
from tests.support.faults.matrix import mock_stage
from tests.support.rdma.sender import devices_of

BOUND_S: Final = 15.0
WHOLE_TIMEOUT_S: Final = 300.0
"""It imports for a long time."""


def verbs_options(each: int = 2) -> Sequence[str]:
    """For `tandem up` with `each` workers of a role: patience, and each prefill's first rail goes to the device that
    decode uses first, through the guest's cable."""
    ways = {"prefill": Direction.SEND, "decode": Direction.RECEIVE}
    named = {f"{role}-{n}": ",".join(devices_of(way)) for role, way in ways.items() for n in range(each)}
    crossed = [part for name, value in named.items() for part in ("--env", f"{name}:TANDEM_RANK_VERBS_DEVICES={value}")]
    return (*PATIENT, *crossed)


@contextmanager
def verbs_stage(folder: Path, provider: str, moment: Moment) -> Iterator[Stage]:
    """Where cells of the fault matrix are tried in the guest."""
    options = verbs_options()
    with mock_stage(folder, provider, moment, *options, bound_s=BOUND_S, whole_timeout_s=WHOLE_TIMEOUT_S) as stage:
        yield stage
