"""The test's side: two worker processes and what they say."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.support.settings import environment

TINY = ROOT / "models" / "tandem-tiny"


@dataclass
class Answer:
    """What one leg said of one room."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish: dict[str, Any] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """One worker process."""

    def __init__(self, role: str, log: Path) -> None:
        self.role = role
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.started: dict[str, Any] = {}
        self.failure = ""
        self._log = log
        self._status: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        """None once it has ended."""
        self._refused: dict[int, str] = {}

    async def start(self, options: dict[str, Any], env: dict[str, str]) -> None:
        """Starts it and waits until its engine is up."""
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.sglang.worker",
                self.role,
                json.dumps(options),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment(**env),
                limit=1 << 24,
            )
        self._up = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        await self._up.wait()
        if self.failure or not self.started:
            raise self._gone()

    def _gone(self) -> RuntimeError:
        return RuntimeError(f"{self.role}: {self.failure}\n{self._log.read_text(errors='replace')[-4000:]}")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self._take(json.loads(line))
        self._up.set()
        self._status.put_nowait(None)
        for answer in self.answers.values():
            answer.began.set()
            answer.ended.set()

    def _take(self, news: dict[str, Any]) -> None:
        match news.pop("news"):
            case "started":
                self.started = news
                self._up.set()
            case "failed":
                self.failure = news["message"]
                self._up.set()
            case "status":
                self._status.put_nowait(news)
            case "refused":
                answer = self.answers[news["room"]]
                answer.finish = {"kind": "refused", "why": [news["reason"], news["message"]]}
                answer.ended.set()
            case "delta":
                self._delta(news)

    def _delta(self, news: dict[str, Any]) -> None:
        answer = self.answers[news["room"]]
        answer.token_ids += news["token_ids"]
        answer.text += news["text"]
        answer.logprobs += news["logprobs"]
        answer.prompt_logprobs += news["prompt_logprobs"]
        answer.began.set()
        if news["finish"]:
            answer.finish = news["finish"]
            answer.ended.set()

    def send(self, **command: Any) -> None:
        """Tells it something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def status(self) -> dict[str, Any]:
        """Its EngineStatus. Fails if it has ended."""
        self.send(do="status")
        found = await self._status.get()
        if found is None:
            self._status.put_nowait(None)
            raise self._gone()
        return found

    async def idle(self) -> dict[str, Any]:
        """Its status once no room is open and nothing runs or waits."""
        while True:
            status = await self.status()
            if not (status["running"] or status["waiting"] or status["open_rooms"]):
                return status
            await asyncio.sleep(0.05)

    async def switch(self, role: str) -> None:
        """Lets its engine take another role, and waits until it has."""
        self._up.clear()
        self.send(do="switch", role=role)
        await self._up.wait()
        if self.failure:
            raise self._gone()
        self.role = role

    async def stop(self) -> int:
        """Ends it; returns its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = await self.process.wait()
        await self._reader
        return code


class Pair:
    """A prefill worker and a decode worker."""

    def __init__(self, directory: Path) -> None:
        self.prefill = Worker("prefill", directory / "prefill.log")
        self.decode = Worker("decode", directory / "decode.log")
        self._rooms = itertools.count(secrets.randbelow(1 << 62) + 1)

    async def start(self, *, env: dict[str, str] | None = None, **options: Any) -> None:
        """Starts both at once."""
        options = {"model_path": str(TINY), "dtype": "float32", "device": "cpu", **options}
        await asyncio.gather(*(worker.start(options, env or {}) for worker in (self.prefill, self.decode)))
        self.decode.send(do="joined", peer="prefill", addresses=self.addresses)

    async def swap(self) -> None:
        """Each of the two becomes what the other is."""
        await asyncio.gather(self.prefill.switch("decode"), self.decode.switch("prefill"))
        self.prefill, self.decode = self.decode, self.prefill
        self.decode.send(do="joined", peer="prefill", addresses=self.addresses)

    @property
    def addresses(self) -> list[str]:
        """Where prefill's ranks listen."""
        return list(self.prefill.started["addresses"])

    def submit(
        self, input_ids: list[int], *, logprobs: dict[str, Any] | None = None, early: bool = False, **sampling: Any
    ) -> int:
        """Sends one request to both; returns its room."""
        room = next(self._rooms)
        common: dict[str, Any] = {
            "do": "submit",
            "room": room,
            "nonce": secrets.token_bytes(16).hex(),
            "input_ids": input_ids,
            "sampling": {"temperature": 0.0, "ignore_eos": True, **sampling},
            "logprobs": logprobs,
            "early_first_token": early,
        }
        self.decode.send(**common, peer="prefill", addresses=self.addresses)
        self.prefill.send(**common, peer="decode")
        return room

    async def answer(self, room: int) -> Answer:
        """What decode said of a room, once both legs have ended."""
        await self.prefill.answers[room].ended.wait()
        await self.decode.answers[room].ended.wait()
        return self.decode.answers[room]

    async def stop(self) -> list[int]:
        """Ends both; returns their exit codes."""
        return list(await asyncio.gather(self.prefill.stop(), self.decode.stop()))
