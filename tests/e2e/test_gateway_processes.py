"""A gateway of two processes on one port: it serves, answers operators as one, outlives a process, and drains."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.system.command import tandem
from tests.support.system.system import System, running_system

MODEL = "tiny"
PROCESSES = ("0", "1")
WAIT_S = 60
PAUSE_S = 0.1
"""Between two questions about what is to come."""
SMALL_PAGES, PAGE = 20, 16
LARGE_PAGES = 12
"""More than half of the worker."""
SLOW = {
    "model": MODEL,
    "prompt": list(range(100, 100 + 2 * PAGE)),
    "max_tokens": (LARGE_PAGES - 2) * PAGE,
    "ignore_eos": True,
    "stream": True,
}
LARGE = {"model": MODEL, "prompt": list(range(100, 100 + LARGE_PAGES * PAGE - 2)), "max_tokens": 2}
SHORT = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2}
LONG = {**SHORT, "max_tokens": 4000, "ignore_eos": True}
"""Forty seconds, as each step of decode takes 10 ms."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker, a gateway of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    options = ("--engine", "mock", "--model-name", MODEL, "--gateway-processes", "2")
    with running_system(folder, *options, "--engine-arg", "decode_us_per_step=10000") as running:
        yield running


@asynccontextmanager
async def connection(system: System) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a connection of its own, which comes to either process."""
    async with httpx.AsyncClient(base_url=system.url, timeout=WAIT_S, trust_env=False) as client:
        yield client


async def told(system: System, series: str) -> dict[str, float]:
    """A metric of each process, over its other labels."""
    async with connection(system) as client:
        text = (await client.get("/metrics")).text
    found = Counter[str]()
    for labels, value in re.findall(rf"^{series}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        found[labels.partition('gateway_process="')[2][0]] += float(value)
    return dict(found)


def children(system: System) -> dict[str, int]:
    """The gateway's processes: pid by number."""
    found = {}
    for one in psutil.Process(system.pid("gateway")).children():
        order = next((word for word in one.cmdline() if word.startswith("{")), None)
        if order is not None:
            found[str(json.loads(order)["index"])] = one.pid
    return found


async def complete(system: System) -> None:
    """One request over a connection of its own."""
    async with connection(system) as client:
        response = await client.post("/v1/completions", json=SHORT)
        assert response.status_code == 200, response.text


async def ask_until(system: System, process: str) -> None:
    """Asks over new connections until a process has had one. Fails if any of them fails."""
    before = (await told(system, "tandem_gateway_requests_total")).get(process, 0)
    async with asyncio.timeout(WAIT_S):
        while (await told(system, "tandem_gateway_requests_total")).get(process, 0) <= before:
            await complete(system)
            await asyncio.sleep(PAUSE_S)


async def test_both_serve_and_one_scrape_tells_of_both(system: System) -> None:
    for _ in range(32):
        await complete(system)
    text = 'tandem_gateway_requests_total{code="200",endpoint="/v1/completions",gateway_process="'
    async with connection(system) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    counts = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(text)]
    assert len(counts) == 2
    assert sum(counts) == 32
    heads = [line for line in lines if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads)), "a metric is in two pieces"
    assert 'tandem_gateway_processes{state="told"} 2' in lines


async def test_limits_are_shared_out(system: System) -> None:
    assert await told(system, "tandem_gateway_sequences_limit") == {"0": 512, "1": 512}


async def test_an_answer_is_found_by_whichever_process_is_asked(system: System) -> None:
    seen: set[str] = set()
    async with connection(system) as client:
        body = {"model": MODEL, "input": "hello", "max_output_tokens": 2}
        first = (await client.post("/v1/responses", json=body)).json()
    path = f"/v1/responses/{first['id']}"
    async with asyncio.timeout(WAIT_S):
        while len(seen) < 2:
            async with connection(system) as client:
                again = {**body, "previous_response_id": first["id"]}
                answer = await client.post("/v1/responses", json=again)
                assert answer.status_code == 200, answer.text
                seen.add(answer.json()["id"].removeprefix("resp_")[:2])
                assert (await client.get(path)).json() == first
    async with connection(system) as client:
        assert (await client.delete(path)).json()["deleted"]
    for _ in range(8):
        async with connection(system) as client:
            gone = await client.get(path)
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "unknown_response")


async def test_operators_reach_all_processes(system: System) -> None:
    async with connection(system) as client, connection(system) as other:
        streams = [one.post("/v1/completions", json=LONG) for one in (client, other)]
        asking = [asyncio.create_task(stream) for stream in streams]
        async with asyncio.timeout(WAIT_S):
            while len(rooms := json.loads(await command(system, "rooms", "--json"))["rooms"]) < 2:
                pass
        for room in rooms:
            await command(system, "rooms", "abort", room["room"])
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [499, 499]
    await command(system, "set-policy", "round_robin")
    log = (system.folder / "logs" / "gateway.log").read_text()
    for who in ("parent", "process-0", "process-1"):
        assert re.search(rf"gateway/{who} tandem.audit: .*policy of decode.*round_robin", log), who


async def test_the_log_level_is_that_of_all_processes_and_config_shows_the_whole_gateway(system: System) -> None:
    await command(system, "loglevel", "DEBUG", "--for-s", "1", "--worker", "gateway")
    for who in ("parent", "process-0", "process-1"):
        await logged(system, rf"gateway/{who} tandem.audit: .*log level: INFO -> DEBUG for 1000 ms")
        await logged(system, rf"gateway/{who} tandem.audit: time is over: log level: DEBUG -> INFO")
    await command(system, "loglevel", "DEBUG", "--worker", "gateway")
    shown = await command(system, "config", "--worker", "gateway")
    assert "log level DEBUG" in shown
    for line in ("TANDEM_GATEWAY_PROCESSES=2", "TANDEM_GATEWAY_MAX_CONCURRENT=1024"):
        assert line in shown.splitlines()


async def logged(system: System, pattern: str) -> None:
    """Waits until the gateway's log has a line."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if re.search(pattern, (system.folder / "logs" / "gateway.log").read_text()):
                return
            await asyncio.sleep(PAUSE_S)


async def test_a_trace_is_found_whichever_process_has_served_its_request(system: System) -> None:
    served: dict[str, str] = {}
    async with asyncio.timeout(WAIT_S):
        while len(served) < 2:
            name, before = f"traced-{secrets.token_hex(4)}", await told(system, "tandem_gateway_requests_total")
            async with connection(system) as client:
                answer = await client.post("/v1/completions", json=SHORT, headers={"X-Request-Id": name})
                assert answer.status_code == 200, answer.text
            after = await told(system, "tandem_gateway_requests_total")
            served[max(PROCESSES, key=lambda one: after.get(one, 0) - before.get(one, 0))] = name
    for name in served.values():
        found = json.loads(await command(system, "trace", name, "--json"))
        assert {span["service"] for span in found["spans"]} >= {"tandem-gateway", "tandem-prefill", "tandem-decode"}
        assert found["silent"] == {}


async def test_a_viewer_of_the_dashboard_sees_what_all_processes_do(system: System) -> None:
    asking: dict[str, asyncio.Task[httpx.Response]] = {}
    async with AsyncExitStack() as stack, asyncio.timeout(WAIT_S):
        while not all([(running := await in_flight(system, len(asking))).get(process) for process in PROCESSES]):
            client = await stack.enter_async_context(connection(system))
            name = f"seen-{secrets.token_hex(4)}"
            asked = client.post("/v1/completions", json=LONG, headers={"X-Request-Id": name})
            asking[name] = asyncio.create_task(asked)
        found = await shown(system, lambda one: one["rooms"]["decode"] == len(asking))
        assert {worker["id"]: worker["in_flight"] for worker in found["workers"]}["decode-0"] == len(asking)
        gateway = found["gateway"]
        assert (gateway["sequences"], gateway["max_sequences"], gateway["silent"]) == (sum(running.values()), 1024, 0)
        # All but the last came to one process, else there would have been no need of it.
        first, *others, last = asking
        for name in (*others, first, last):
            asking[name].cancel()
            await asyncio.wait({asking[name]})
        await in_flight(system, 0)
        await shown(system, lambda one: {first, last} <= {trace["request_id"] for trace in one["traces"]})


async def in_flight(system: System, total: int) -> dict[str, float]:
    """Sequences of each process, once there are so many."""
    while True:
        found = await told(system, "tandem_gateway_sequences_in_flight")
        if sum(found.values()) == total:
            return found
        await asyncio.sleep(PAUSE_S)


async def shown(system: System, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first snapshot of the dashboard that is as wanted."""
    async with connection(system) as client, client.stream("GET", "/dashboard/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and wanted(found := json.loads(line.removeprefix("data: "))):
                return dict(found)
    raise AssertionError("the events ended")


async def command(system: System, *words: str) -> str:
    """What a command prints; fails if it does."""
    found = await asyncio.to_thread(tandem, system, *words)
    assert found.returncode == 0, found.stderr
    return found.stdout


async def test_a_process_that_dies_is_started_anew_while_the_other_serves(system: System) -> None:
    before = children(system)
    assert sorted(before) == list(PROCESSES)
    killed = psutil.Process(before["1"])
    killed.send_signal(signal.SIGKILL)
    psutil.wait_procs([killed], timeout=WAIT_S)
    await ask_until(system, "0")
    async with asyncio.timeout(WAIT_S):
        while len(await told(system, "tandem_gateway_sequences_limit")) < 2:
            await complete(system)
            await asyncio.sleep(PAUSE_S)
    await ask_until(system, "1")
    after = children(system)
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    settings = (system.folder / "logs" / "gateway.log").read_text().rpartition("settings:\n")[2].splitlines()
    assert {"TANDEM_GATEWAY_DECODE_POLICY=round_robin", "TANDEM_GATEWAY_LOG_LEVEL=DEBUG"} <= set(settings)


async def test_sigterm_drains_both_and_leaves_nothing(system: System) -> None:
    pids = [*system.processes()]
    streams: dict[str, asyncio.Task[bytes]] = {}
    async with asyncio.timeout(WAIT_S):
        while len(streams) < 2:
            process, rest = await begin(system)
            if process in streams:
                rest.cancel()
            else:
                streams[process] = rest
        system.process.send_signal(signal.SIGTERM)
        for rest in streams.values():
            assert (await rest).endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(system.process.wait, WAIT_S) == 0
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    log = (system.folder / "logs" / "gateway.log").read_text()
    assert "do not drain" not in log
    assert "killed" not in log


async def begin(system: System) -> tuple[str, asyncio.Task[bytes]]:
    """A stream that has begun, at which process, and what is left of it."""
    before = await told(system, "tandem_gateway_sequences_in_flight")
    begun: asyncio.Event = asyncio.Event()

    async def read() -> bytes:
        async with connection(system) as client:
            body = {**SHORT, "max_tokens": 200, "stream": True, "ignore_eos": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                got = b""
                async for piece in response.aiter_bytes():
                    begun.set()
                    got += piece
                return got

    reading = asyncio.create_task(read())
    await begun.wait()
    after = await told(system, "tandem_gateway_sequences_in_flight")
    return next(process for process in PROCESSES if after[process] > before[process]), reading


async def test_each_process_leaves_the_room_that_the_other_has_given_away(tmp_path: Path) -> None:
    """Requests that fit the only decode worker one by one come to both processes, two of them at a time."""
    pages = ("--engine-arg", f"pages={SMALL_PAGES}", "--engine-arg", "decode_us_per_step=250000")
    options = ("--engine", "mock", "--model-name", MODEL, "--gateway-processes", "2", *pages)
    with running_system(tmp_path, *options) as system:
        whole = SMALL_PAGES * PAGE
        both = dict.fromkeys(PROCESSES, whole)
        await until_room(system, both)
        async with connection(system) as client, client.stream("POST", "/v1/completions", json=SLOW) as running:
            lines = running.aiter_lines()
            await anext(lines)
            left = (whole - LARGE_PAGES * PAGE) // PAGE * PAGE
            await until_room(system, dict.fromkeys(PROCESSES, left))
            asked = {one: asyncio.create_task(complete_large(system)) for one in range(4)}
            await until(system, "tandem_gateway_waiting", lambda waiting: sum(waiting.values()) == len(asked))
            rooms = await told(system, "tandem_gateway_rooms")
            assert sum(rooms.values()) <= 2, "the two legs of the one that runs"
            assert not any(task.done() for task in asked.values())
        await asyncio.gather(*asked.values())
        await until_room(system, both)


async def complete_large(system: System) -> None:
    """One of a large prompt, over a connection of its own."""
    async with connection(system) as client:
        response = await client.post("/v1/completions", json=LARGE)
        assert response.status_code == 200, response.text


async def until_room(system: System, expected: dict[str, int]) -> None:
    """Waits until each process knows of so much room, in tokens."""
    await until(system, "tandem_gateway_decode_room_tokens", lambda room: room == expected)


async def until(system: System, series: str, holds: Callable[[dict[str, float]], bool]) -> None:
    """Waits until something holds of a metric of each process."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if holds(await told(system, series)):
                return
            await asyncio.sleep(PAUSE_S)
