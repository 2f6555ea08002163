"""One dashboard of several processes: what each of them saw becomes what one process would have seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from tandem.core.cluster import ClusterView
from tandem.core.errors import ErrorReason
from tandem.core.ids import PAIR, Incarnation, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.share import Share
from tandem.gateway.dashboard.board import ERRORS_SHOWN, TRACES_SHOWN, Board, Sources
from tandem.gateway.dashboard.recorder import Recorder
from tandem.gateway.dashboard.ring import BUCKET_S
from tandem.gateway.dashboard.roster import Roster
from tandem.gateway.dashboard.traces import ShownTrace, TraceStep
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.rooms import Entry, RoomFacts
from tandem.gateway.siblings.boards import Boards
from tandem.gateway.siblings.place import Place
from tests.support.bootstrap.workers import worker
from tests.support.gateway.clock import HandClock

LOADED = "/v1/completions"
DECODE = worker("d0", Role.DECODE, incarnation=1)


@dataclass
class Process:
    """One process, all of whose decode rooms are on one worker. It is its pool, its places and its traces as well."""

    clock: HandClock
    rooms: list[Entry] = field(default_factory=list)
    traces: list[ShownTrace] = field(default_factory=list)
    missing: str = ""
    most: int = 512
    silent: bool = False

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.clock, frozenset({LOADED}))
        self.view = ClusterView(workers={DECODE.worker_id: DECODE})
        self.up = True
        sources: Any = Sources(
            self.clock,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.recorder,
            Roster(self.clock),
            self,
            lambda: self.missing,
            lambda: True,
            self,
        )
        self.board = Board(sources)

    @property
    def used(self) -> int:
        return len(self.rooms)

    @property
    def in_flight(self) -> int:
        return len(self.rooms)

    latest = heard_at = None

    def member_of(self, worker_id: WorkerId) -> tuple[Any, Any]:
        return self, self

    def models(self) -> tuple[str, ...]:
        return ("m",)

    def entries(self) -> list[Entry]:
        return self.rooms

    def last(self, count: int) -> list[ShownTrace]:
        return self.traces[:count]


@dataclass
class Others:
    """The siblings of a process; each answers as it would over a socket."""

    processes: list[Process]

    @property
    def place(self) -> Place:
        return Place(Share(0, 1 + len(self.processes)), Path())

    async def board(self, index: int) -> bytes:
        process = self.processes[index - 1]
        if process.silent:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        return Boards(process.board, None).own()


async def shown(*processes: Process) -> dict[str, Any]:
    """What a viewer gets who has come to the first."""
    first, *others = processes
    found: dict[str, Any] = orjson.loads(await Boards(first.board, Others(others) if others else None).encoded())  # type: ignore[arg-type]
    return found


def room(number: int, started: float) -> Entry:
    """One that decodes."""
    lives = [WorkerLife(WorkerId(name), Incarnation(1)) for name in ("p0", "d0")]
    facts = RoomFacts(RoomId(number), RequestId(f"r{number}"), 1, dict(zip(PAIR, lives, strict=True)), 1e6)
    running: Any = type("Running", (), {"phase": RoomPhase.DECODING})()
    return Entry(number, facts, running, started)


def trace(name: str, ended_ms: int) -> ShownTrace:
    """Of one step."""
    return ShownTrace(name, ended_ms, 1.5, [TraceStep("GET", "gateway", 0.0, 1.5, None, "ok", "", {"n": 1, "b": True})])


async def test_the_plots_of_two_processes_are_those_of_one_that_saw_it_all() -> None:
    clock = HandClock(1000.0)
    whole, parts = Process(clock), [Process(clock), Process(clock)]
    for second in range(60):
        clock.now_s = 1000.0 + second
        for number in range(second % 7):
            for process in (whole, parts[number % 2]):
                process.recorder.saw_answer(LOADED)
                process.recorder.saw_first_token(clock.now_s, 0.01 * (number + second))
                process.recorder.saw_tokens(clock.now_s, 3, 0.002 * (number + 1))
    assert (await shown(*parts))["series"] == (await shown(whole))["series"]


async def test_a_process_that_is_younger_or_a_moment_later_is_added_where_it_was_there() -> None:
    clock = HandClock(1000.0)
    old = Process(clock)
    old.recorder.saw_answer(LOADED)
    clock.now_s += 2 * BUCKET_S
    young = Process(clock)
    for process in (old, young):
        process.recorder.saw_answer(LOADED)
    clock.now_s += BUCKET_S
    for viewed in ((old, young), (young, old)):
        rates = (await shown(*viewed))["series"]["requests_per_s"]
        assert [rate for rate in rates if rate is not None] == [0.2, 0.0, 0.4, 0.4]


async def test_places_rooms_and_what_a_worker_has_are_added_up() -> None:
    clock = HandClock(1000.0)
    first = Process(clock, [room(1, 990.0), room(2, 998.0)])
    second = Process(clock, [room(3, 995.0)], missing="no prefill worker")
    found = await shown(first, second)
    gateway = found["gateway"]
    assert (gateway["sequences"], gateway["max_sequences"], gateway["silent"]) == (3, 1024, 0)
    assert gateway["missing"] == "no prefill worker"
    assert found["rooms"]["decode"] == 3
    assert [one["request_id"] for one in found["rooms"]["oldest"]] == ["r1", "r3", "r2"]
    assert [one["in_flight"] for one in found["workers"]] == [3]


async def test_errors_and_traces_are_the_newest_of_all() -> None:
    clock = HandClock(1000.0)
    processes = [Process(clock), Process(clock)]
    for number in range(2 * ERRORS_SHOWN):
        clock.now_s += 1
        processes[number % 2].recorder.saw_error(LOADED, ErrorReason.LINK_LOST, RequestId(f"e{number}"))
        processes[number % 2].traces.insert(0, trace(f"t{number}", 1000 * number))
    found = await shown(*processes)
    last = 2 * ERRORS_SHOWN - 1
    assert [one["request_id"] for one in found["errors"]] == [f"e{last - back}" for back in range(ERRORS_SHOWN)]
    assert [one["request_id"] for one in found["traces"]] == [f"t{last - back}" for back in range(TRACES_SHOWN)]
    assert found["traces"][0] == (await shown(processes[1]))["traces"][0]


@pytest.mark.parametrize("silent", [True, False])
async def test_a_process_that_does_not_answer_is_counted(silent: bool) -> None:
    clock = HandClock(1000.0)
    found = await shown(Process(clock), Process(clock, [room(1, 990.0)], silent=silent), Process(clock))
    assert (found["gateway"]["silent"], found["rooms"]["decode"]) == ((1, 0) if silent else (0, 1))
