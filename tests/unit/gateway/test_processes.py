"""Several processes of one gateway: what they share out, how their scrapes become one, and who is started anew."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.core.errors import TandemError
from tandem.core.share import Share
from tandem.gateway.admission import tenants
from tandem.gateway.processes import merging
from tandem.gateway.processes.supervisor import GaveUp, RestartPolicy, Supervisor
from tandem.gateway.settings import SHARED_OUT, GatewaySettings, shared_out
from tandem.gateway.siblings.scrape import merged
from tandem.gateway.web.listening import hold_port, listen
from tandem.rpc.backoff import BackoffPolicy
from tandem.rpc.metrics import Metrics
from tandem.v1 import admin_pb2

QUICK = RestartPolicy(max_in_a_row=2, backoff=BackoffPolicy(initial_ms=1, max_ms=1))
SERVES = "echo listening gateway 127.0.0.1:1; read line; exit 0"
"""A process that serves until its standard input ends."""


@pytest.mark.parametrize("whole", [0, 1, 2, 7, 1024])
def test_shares_add_up(whole: int) -> None:
    shares = [Share(index, 3).of(whole) for index in range(3)]
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1


def test_bounds_of_the_gateway_are_shared_out() -> None:
    settings = GatewaySettings.load(model_path="m", processes=3, max_concurrent=10)
    parts = [shared_out(settings, Share(index, 3)) for index in range(3)]
    assert [part.max_concurrent for part in parts] == [4, 3, 3]


@pytest.mark.parametrize("field", sorted({*SHARED_OUT} - {"kept_responses_bytes"}))
def test_a_bound_below_the_number_of_processes_is_refused_by_name(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        GatewaySettings.load(model_path="m", processes=4, **{field: 3})
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"setting {field} (TANDEM_GATEWAY_{field.upper()})" in said
    assert "4 processes (TANDEM_GATEWAY_PROCESSES)" in said


def test_tenants_share_out_too() -> None:
    text = "[tenants.a]\ntokens_per_min = 5\n"
    assert [tenants.parse(text, Share(index, 2)).by_key["a"].tokens_per_min for index in range(2)] == [3, 2]
    assert tenants.parse(text, Share(0, 2)).by_key["a"].requests_per_min == 0
    with pytest.raises(TandemError, match=r"tenants\.a\.tokens_per_min: 5 is not enough for the 6 processes"):
        tenants.parse(text, Share(0, 6))
    with pytest.raises(TandemError, match=r"default\.max_concurrent"):
        tenants.parse("[default]\nmax_concurrent = 1\n", Share(1, 2))


def test_scrapes_become_one_that_prometheus_reads() -> None:
    texts = []
    for process in range(2):
        metrics = Metrics()
        metrics.counter("asked", "Asked.", ("code",)).labels("200").inc(process + 1)
        metrics.histogram("waited_seconds", "Waited.", (1.0,)).observe(0.5)
        metrics.gauge("never", "Has no series.", ("label",))
        texts.append(metrics.render({"gateway_process": str(process)}))
    whole = merged(texts).decode()
    found = {family.name: family for family in text_string_to_metric_families(whole)}
    assert whole.count("# TYPE asked_total counter") == 1
    assert {tuple(one.labels.items()): one.value for one in found["asked"].samples} == {
        (("code", "200"), ("gateway_process", "0")): 1,
        (("code", "200"), ("gateway_process", "1")): 2,
    }
    counts = [one for one in found["waited_seconds"].samples if one.name == "waited_seconds_count"]
    assert [(one.labels, one.value) for one in counts] == [({"gateway_process": str(n)}, 1) for n in range(2)]
    assert sum(1 for _ in Metrics().registry.collect()) == 1, "labels are added to what is told, not to what is kept"


def test_numbers_of_those_that_are_gone_still_count() -> None:
    first = admin_pb2.WatchClusterResponse(
        requests=3,
        asked=5,
        waiting=2,
        rooms=[admin_pb2.PhaseCount(phase=admin_pb2.ROOM_PHASE_DECODING, rooms=2)],
        workers=[admin_pb2.WorkerNumbers(in_flight=2, up=True, known=True, pages_total=9, breaker=1)],
    )
    second = admin_pb2.WatchClusterResponse(
        requests=4,
        asked=6,
        waiting=3,
        rooms=[admin_pb2.PhaseCount(phase=admin_pb2.ROOM_PHASE_DECODING, rooms=1)],
        workers=[admin_pb2.WorkerNumbers(in_flight=1, up=False, breaker=2)],
    )
    gone = admin_pb2.WatchClusterResponse()
    both = merging.numbers(7, [first, second], gone)
    merging.counted(gone, first)
    one = merging.numbers(8, [second], gone)
    assert (both.requests, one.requests, both.asked, one.asked) == (7, 7, 11, 11)
    assert (both.waiting, one.waiting) == (5, 3), "who waits with a process goes with it"
    assert both.rooms[0].rooms == 3
    [worker] = both.workers
    assert (worker.in_flight, worker.up, worker.pages_total, worker.breaker) == (3, False, 9, 2)


@pytest.mark.parametrize("cursor", [(0, 5), (1, 0), (63, 1 << 40)])
def test_where_a_list_of_rooms_goes_on(cursor: tuple[int, int]) -> None:
    assert merging.place_of(merging.cursor(*cursor)) == cursor


def test_a_held_port_is_for_processes_of_one_gateway_only() -> None:
    settings = GatewaySettings.load(model_path="m", port=0)
    with hold_port(settings) as held:
        port = settings.model_copy(update={"port": held.getsockname()[1]})
        with listen(port, shared=True), listen(port, shared=True):
            with pytest.raises(OSError, match="in use"):
                hold_port(port)
            with pytest.raises(OSError, match="in use"):
                listen(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((port.host, port.port), 5)


class Script:
    """What each life of each process does, as shell commands; the last goes on."""

    def __init__(self, *lives: str) -> None:
        self._lives = lives
        self.started: list[tuple[int, bool]] = []
        self.started_four = asyncio.Event()

    def command(self, index: int, replaces: bool) -> Sequence[str]:
        """The next life of a process."""
        life = sum(1 for started, _ in self.started if started == index)
        self.started.append((index, replaces))
        if len(self.started) == 4:
            self.started_four.set()
        return ["/bin/sh", "-c", self._lives[min(life, len(self._lives) - 1)]]


async def test_who_dies_is_started_anew_and_all_end_at_the_end_of_their_input(tmp_path: Path) -> None:
    die = tmp_path / "die"
    first = f"echo listening gateway x; while [ ! -e {die} ]; do sleep 0.01; done; exit 7"
    script = Script(first, SERVES)
    supervisor = Supervisor(2, script.command, drain_s=30, policy=QUICK)
    running = asyncio.create_task(supervisor.run())
    await supervisor.started.wait()
    die.touch()
    async with asyncio.timeout(30):
        await script.started_four.wait()
        await asyncio.gather(*(supervisor.wait_listening(index) for index in range(2)))
        assert sorted(script.started) == [(0, False), (0, True), (1, False), (1, True)]
        await supervisor.stop()
        await running
    assert not supervisor.listening


async def test_it_gives_up_where_one_does_not_even_start() -> None:
    supervisor = Supervisor(2, Script("exit 2").command, drain_s=30, policy=QUICK)
    with pytest.raises(GaveUp, match="ended with exit code 2 before it served") as gave_up:
        await supervisor.run()
    assert gave_up.value.code == 2
    await supervisor.stop()


async def test_it_gives_up_where_all_die_again_and_again() -> None:
    supervisor = Supervisor(2, Script("echo listening gateway x; exit 1").command, drain_s=30, policy=QUICK)
    supervisor.started.set()
    with pytest.raises(GaveUp, match=r"after \d+ restarts, and no other process serves"):
        await asyncio.wait_for(supervisor.run(), 60)
    await supervisor.stop()


async def test_who_does_not_drain_in_time_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    deaf = "echo listening gateway x; exec sleep 600"
    supervisor = Supervisor(1, Script(deaf).command, drain_s=-5, policy=QUICK)
    running = asyncio.create_task(supervisor.run())
    await supervisor.started.wait()
    await supervisor.stop()
    await running
    assert "did not drain in time" in caplog.text
