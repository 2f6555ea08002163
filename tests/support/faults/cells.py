"""The cells of the fault matrix: what is struck, how, at which moment of a request, and over which provider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product


class Victim(Enum):
    """What is struck: a process of the system, by its name in `tandem up`."""

    PREFILL = "prefill-0"
    DECODE = "decode-0"
    BOOTSTRAP = "bootstrap"
    GATEWAY = "gateway"

    @property
    def role(self) -> str:
        """Its name without a number."""
        return self.value.partition("-")[0]

    @property
    def worker(self) -> bool:
        """Whether it registers at bootstrap."""
        return self in (Victim.PREFILL, Victim.DECODE)


class Fault(Enum):
    """How it is struck; see tests.support.faults.strikes."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP 5 s"
    TERM = "SIGTERM"
    CUT = "connections cut"

    @property
    def ends_process(self) -> bool:
        """Whether `tandem up` has to start it again."""
        return self in (Fault.KILL, Fault.TERM)


class Moment(Enum):
    """When it is struck; see tests.support.faults.moments."""

    BEFORE_GRANT = "before grant"
    MID_TRANSFER = "mid-transfer"
    AFTER_COMPLETE = "after complete"
    MID_DECODE = "mid-decode"


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment."""

    provider: str
    moment: Moment
    victim: Victim
    fault: Fault

    def __str__(self) -> str:
        return f"{self.victim.role}, {self.fault.value}, {self.moment.value}, {self.provider}"


def cells(
    providers: Iterable[str],
    moments: Iterable[Moment] = Moment,
    victims: Iterable[Victim] = Victim,
    faults: Iterable[Fault] = Fault,
) -> Iterator[Cell]:
    """All of them. Cells that can share a system (the same provider and moment) follow each other."""
    return (Cell(*one) for one in product(providers, moments, victims, faults))
