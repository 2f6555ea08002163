"""Many mutated requests and messages to a running system, good ones in between, and a look at it before and after."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import psutil

from tandem.rpc.client import open_channel
from tests.support.fuzz import over_grpc, over_http
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import generate, metric, prompt_of
from tests.support.system.sockets import listeners
from tests.support.system.system import System

AT_ONCE: Final = 12
GOOD_EVERY: Final = 250
HTTP_PART: Final = 0.6
GRPC_PART: Final = 0.3
"""The rest are bytes to any port that listens."""
RSS_GROWTH: Final = 200 << 20
"""Bytes that a process may grow by: what imports, buffers and caches fill at first."""
MORE_DESCRIPTORS: Final = 16
OF_UVICORN: Final = "h11._util.LocalProtocolError: can't handle event type Response"
"""How uvicorn logs, with a traceback, that what followed a request to a port of metrics was no HTTP."""


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    growth: dict[str, int] = field(default_factory=dict)
    """Bytes by which each process has grown."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Memory and descriptors of one process."""

    rss: int
    descriptors: int
    threads: int


def sizes(system: System) -> dict[str, Sizes]:
    """Of every process, by its name."""
    found = {}
    for row in system.state.processes:
        process = psutil.Process(row.pid)
        found[row.name] = Sizes(process.memory_info().rss, process.num_fds(), process.num_threads())
    return found


class Campaign:
    """One run against one system."""

    def __init__(self, system: System, oracle: Oracle, seed: int) -> None:
        self._system = system
        self._oracle = oracle
        self._dice = random.Random(seed)
        self.report = Report()
        host, _, port = system.url.removeprefix("http://").rpartition(":")
        self._gateway = (host, int(port))
        self._ports = [one.address for one in listeners(system)]
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def run(self, count: int, seconds: float = math.inf) -> Report:
        """Sends so many, fewer if so many seconds are over before, then looks at what is left of them."""
        await self._open()
        await self._good()
        await self._system.wait_idle()
        before = sizes(self._system)
        done, end = 0, time.monotonic() + seconds
        while done < count and time.monotonic() < end:
            part = min(GOOD_EVERY, count - done)
            turn = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for _ in range(part):
                    group.create_task(self._one(turn, random.Random(self._dice.getrandbits(64))))
            await self._good()
            done += part
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        await self._compare(before)
        return self.report

    async def _open(self) -> None:
        members = await self._system.members()
        addresses = {"bootstrap": self._system.state.bootstrap, "admin": self._system.state.admin}
        for name, member in members.items():
            addresses[name.partition("-")[0]] = member.info.address
            if member.info.ranks[0].kv_link_address:
                addresses["link"] = member.info.ranks[0].kv_link_address
        self._channels = {kind: open_channel(address) for kind, address in addresses.items()}

    async def _one(self, turn: asyncio.Semaphore, dice: random.Random) -> None:
        async with turn:
            kind = dice.random()
            if kind < HTTP_PART:
                await self._http(over_http.request(dice))
            elif kind < HTTP_PART + GRPC_PART:
                await self._grpc(dice)
            else:
                raw = (
                    over_http.request(dice)
                    if dice.random() < 0.3
                    else dice.randbytes(dice.choice((1, 24, 400, 70_000)))
                )
                host, _, port = dice.choice(self._ports).rpartition(":")
                self.report.sent["bytes"] += 1
                await self._bytes(host, int(port), raw)

    async def _http(self, raw: bytes) -> None:
        self.report.sent["http"] += 1
        try:
            answer = await over_http.send(*self._gateway, raw)
        except TimeoutError:
            self.report.problems.append(f"no end of the answer to {raw[:300]!r}")
            return
        match = over_http.STATUS.match(answer)
        self.report.statuses[match[1].decode() if match else "none"] += 1
        if problem := over_http.problem_of(answer):
            self.report.problems.append(f"{problem} to {raw[:600]!r}")

    async def _bytes(self, host: str, port: int, raw: bytes) -> None:
        """No port may be hurt by bytes; whether it says anything, and when it hangs up, is its own affair."""
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(raw)
            writer.write_eof()
            async with asyncio.timeout(over_grpc.PATIENCE_S):
                await reader.read(1000)
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    async def _grpc(self, dice: random.Random) -> None:
        kind = dice.choice(sorted(self._channels.keys() & over_grpc.SERVED.keys()))
        method = dice.choice(over_grpc.SERVED[kind])
        self.report.sent["grpc"] += 1
        if problem := await over_grpc.call(self._channels[kind], method, over_grpc.payloads(dice, method)):
            self.report.problems.append(f"{kind}: {problem}")

    async def _good(self) -> None:
        """A request of a client that means well is answered, and right."""
        prompt = prompt_of(20, seed=self._dice.getrandbits(32))
        async with self._system.client() as client:
            answer = await generate(client, prompt, 4)
        self.report.sent["good"] += 1
        if answer.tokens != self._oracle.predict(prompt, 4).tokens:
            self.report.problems.append(f"a good request was answered wrong: {answer}")

    async def _compare(self, before: dict[str, Sizes]) -> None:
        await self._system.wait_idle()
        async with self._system.client() as client:
            running: Any = await metric(client, "tandem_gateway_sequences_in_flight ")
        if running:
            self.report.problems.append(f"{running} sequences still run in the gateway")
        for name, after in sizes(self._system).items():
            grown = after.rss - before[name].rss
            self.report.growth[name] = grown
            if grown > RSS_GROWTH:
                self.report.problems.append(f"{name} has grown by {grown >> 20} MiB")
            if after.descriptors > before[name].descriptors + MORE_DESCRIPTORS:
                self.report.problems.append(
                    f"{name} has {after.descriptors} descriptors, had {before[name].descriptors}"
                )
        logs = self._system.logs(1_000_000)
        if crashes := logs.count("Traceback") - logs.count(OF_UVICORN):
            where = logs.index("Traceback")
            self.report.problems.append(f"{crashes} tracebacks in the logs, such as {logs[where - 300 : where + 3000]}")
        for row in self._system.state.processes:
            if row.restarts:
                self.report.problems.append(f"{row.name} died {row.restarts} times")
