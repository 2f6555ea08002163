"""A crew: who may be chosen, and how many rooms each has, without gathering it anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.version import CURRENT
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.health import Exceptional

LAYOUT = KvLayout(16, "bf16", 2, "token", 1, 1, (PoolLayout("kv", (64, 64), 100),))
OTHER = replace(LAYOUT, page_size=32)


@dataclass
class Worker:
    """A worker with some rooms."""

    info: WorkerInfo
    in_flight: int = 0

    @property
    def life(self) -> WorkerLife:
        return self.info.life


def worker(name: str, rooms: int = 0, layout: KvLayout = LAYOUT) -> Worker:
    """One of ten places."""
    life = WorkerLife(WorkerId(name), Incarnation(1))
    return Worker(WorkerInfo(life, Role.DECODE, ("m",), "a:1", layout, (), 100, 10, 100, CURRENT), rooms)


CREW = ("b", "a", "c")
A, B, C = (WorkerLife(WorkerId(name), Incarnation(1)) for name in "abc")


def shown(crew: Crew[Worker], *exceptional: Exceptional, avoid: tuple[WorkerLife, ...] = (), good: bool = False) -> str:
    """Names of those that may be chosen."""
    found = crew.candidates(crew.fitting((LAYOUT,)), exceptional, avoid, only_good=good)
    return "".join(one.life.worker_id for one in found)


def test_candidates_are_in_order_and_their_rooms_are_those_of_now() -> None:
    crew = Crew([worker(name, rooms=1) for name in CREW])
    crew.note_rooms(B, 7)
    crew.note_rooms(WorkerLife(WorkerId("b"), Incarnation(2)), 9)
    found = crew.candidates(None, (), (), only_good=True)
    assert [(one.life, one.in_flight, one.max_running) for one in found] == [(A, 1, 10), (B, 7, 10), (C, 1, 10)]
    assert crew.has_place
    for life in (A, B, C):
        crew.note_rooms(life, 10)
    assert not crew.has_place


def test_who_is_not_trusted_or_has_failed_comes_only_where_there_is_no_other() -> None:
    crew = Crew([worker(name) for name in CREW])
    sick = [Exceptional(life, takes=False, share=0.1) for life in (A, B, C)]
    assert shown(crew, sick[0]) == "bc"
    assert shown(crew, sick[0], avoid=(B,)) == "c"
    assert shown(crew, sick[0], avoid=(B, C)) == "bc"
    assert shown(crew, *sick, avoid=(A,)) == "abc"
    assert shown(crew, *sick, good=True) == shown(crew, avoid=(A, B, C), good=True) == ""


def test_who_starts_slowly_has_fewer_places_and_only_for_this_choice() -> None:
    crew = Crew([worker(name) for name in CREW])
    found = crew.candidates(None, [Exceptional(A, takes=True, share=0.01)], (), only_good=True)
    assert [one.max_running for one in found] == [1, 10, 10]
    assert [one.max_running for one in crew.candidates(None, (), (), only_good=True)] == [10, 10, 10]


def test_what_is_kept_ready_for_the_same_workers_knows_of_rooms_that_come_and_go() -> None:
    crew = Crew([worker(name) for name in CREW])
    some = [(), (Exceptional(A, takes=True, share=0.5),), (Exceptional(B, takes=False, share=0.1),)]
    for rooms in range(3):
        crew.note_rooms(C, rooms)
        found = [crew.candidates(None, exceptional, (), only_good=True) for exceptional in some]
        assert [[(one.in_flight, one.max_running) for one in each] for each in found] == [
            [(0, 10), (0, 10), (rooms, 10)],
            [(0, 5), (0, 10), (rooms, 10)],
            [(0, 10), (rooms, 10)],
        ]
        everyone = crew.candidates(None, some[2], (A, B, C), only_good=False)
        assert [one.in_flight for one in everyone] == [0, rooms]
    assert crew.candidates(None, some[1], (), only_good=True) is found[1]


def test_only_those_whose_layout_fits_are_among_them() -> None:
    crew = Crew([worker("a"), worker("b", layout=OTHER), worker("c")])
    assert shown(crew) == "ac"
    assert crew.fitting((OTHER, LAYOUT)) is None
    assert shown(crew) == "ac", "another question in between changes nothing"
    assert shown(Crew([worker("b", layout=OTHER)])) == ""
    assert shown(Crew([])) == ""
