"""The faults that every side gets, what each has brought, and the table. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Final

from benchmarks.sglang_pd.asking import CLIENT_LIMIT_S, Asked
from tests.support.faults.load import Outcome

BACK_LIMIT_S: Final = 120.0
TITLES: Final = ("in flight", "sent right after", "all workers answer after")


class How(Enum):
    """What is done."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP 5 s"


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault."""

    worker: str
    how: How
    scheduler_only: bool = False
    """Its scheduler process alone, in place of all of its processes."""

    def __str__(self) -> str:
        part = "'s scheduler" if self.scheduler_only else ""
        return f"{self.worker.partition('-')[0]}{part}, {self.how.value}"


BLOWS: Final = {
    "decode-stop": Blow("decode-0", How.STOP),
    "prefill-stop": Blow("prefill-0", How.STOP),
    "decode-kill": Blow("decode-0", How.KILL),
    "prefill-kill": Blow("prefill-0", How.KILL),
    "decode-scheduler-kill": Blow("decode-0", How.KILL, scheduler_only=True),
    "prefill-scheduler-kill": Blow("prefill-0", How.KILL, scheduler_only=True),
}


@dataclass(frozen=True, slots=True)
class Back:
    """When all of a system served again, in seconds from the fault."""

    up_s: float
    """The struck worker was not there until then, its new process was starting, say; 0 if it never was away."""
    all_s: float | None
    """Every worker has answered; None: not within BACK_LIMIT_S after `up_s`."""

    def __str__(self) -> str:
        gone = f"; gone until {self.up_s:.0f} s" if self.up_s else ""
        return (f"{self.all_s:.0f} s" if self.all_s is not None else f"not within {BACK_LIMIT_S:.0f} s") + gone


@dataclass(frozen=True, slots=True)
class Result:
    """One fault on one side."""

    side: str
    blow: Blow
    in_flight: Sequence[Asked]
    late: Sequence[Asked]
    """Sent right after the fault."""
    back: Back

    @property
    def rows(self) -> tuple[str, str, str]:
        """What its three rows say."""
        return told(self.in_flight), told(self.late), str(self.back)


def told(asked: Sequence[Asked]) -> str:
    """What became of some requests: those of one kind together, with the longest time among them."""
    order = list(Outcome)

    def kind(one: Asked) -> tuple[int, str]:
        return order.index(one.outcome), one.reason

    parts = []
    for (number, reason), alike in groupby(sorted(asked, key=kind), key=kind):
        group = list(alike)
        longest = max(one.seconds for one in group)
        if order[number] is Outcome.HUNG:
            parts.append(f"**{len(group)} hung** beyond {CLIENT_LIMIT_S:.0f} s")
        elif order[number] is Outcome.WRONG:
            parts.append(f"**{len(group)} wrong**")
        else:
            name = order[number].value if order[number] is Outcome.ANSWERED else f"`{reason}`"
            parts.append(f"{len(group)} {name} in {longest:.1f} s")
    return ", ".join(parts)


Rows = Mapping[tuple[str, str], Sequence[str]]
"""By fault and side, what its rows say."""


def table(found: Rows) -> str:
    """Three rows for each fault, one column for each side."""
    blows = [str(blow) for blow in BLOWS.values() if any(blow_ == str(blow) for blow_, _ in found)]
    sides = list(dict.fromkeys(side for _, side in found))
    lines = [f"| struck | what | {' | '.join(sides)} |", "|---" * (len(sides) + 2) + "|"]
    for blow in blows:
        columns = [found.get((blow, side), ["not run"] * len(TITLES)) for side in sides]
        for number, title in enumerate(TITLES):
            said = " | ".join(column[number] for column in columns)
            lines.append(f"| {blow if number == 0 else ''} | {title} | {said} |")
    return "\n".join(lines)


def read_rows(lines: Iterable[str]) -> Rows:
    """What was kept of results; of two of the same fault and side the last counts."""
    return {(blow, side): rows for blow, side, *rows in map(json.loads, lines)}


def kept(result: Result) -> str:
    """One line for `read_rows`."""
    return json.dumps([str(result.blow), result.side, *result.rows])
