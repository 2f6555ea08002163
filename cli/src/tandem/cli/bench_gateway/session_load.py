"""The load without a gateway: `python -m tandem.cli.bench_gateway.session_load BOOTSTRAP`.

Asks the two workers of a Tandem system over their own protocol, so that what a gateway adds can be told from what they
take. Does the jobs PACED and STREAMS; see tandem.cli.bench_gateway.jobs.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from contextlib import AsyncExitStack
from typing import Any, Final

import uvloop

from tandem.cli.bench_gateway.jobs import Answered, Job, Kind, Outcome, do_jobs
from tandem.core.cluster import ClusterView, WorkerInfo
from tandem.core.ids import NONCE_BYTES, PAIR, Role
from tandem.core.version import CURRENT
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.watch import ClusterWatcher
from tandem.v1 import decode_pb2_grpc, prefill_pb2_grpc, session_pb2

FIND_MS: Final = 10_000
PROMPT_TOKENS: Final = 40
TIMEOUT_MS: Final = 120_000


class _Room:
    """One answer under way."""

    def __init__(self) -> None:
        self.answered = Answered(time.perf_counter())
        self.done: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.tokens = 0


class SessionLoad:
    """Both Sessions."""

    def __init__(self, workers: dict[Role, WorkerInfo]) -> None:
        self._workers = workers
        self._outboxes: dict[Role, asyncio.Queue[session_pb2.SessionRequest]] = {}
        self._rooms: dict[int, _Room] = {}

    async def follow(self, role: Role, call: Any) -> None:
        """Hands out what a worker says."""
        async for response in call:
            now = time.perf_counter()
            for delta in response.batch.deltas:
                room = self._rooms.get(delta.room)
                if room is not None:
                    self._saw(role, room, delta, now)

    def _saw(self, role: Role, room: _Room, delta: session_pb2.Delta, now: float) -> None:
        # Prefill may say the first token, and decode says it again.
        new = len(delta.token_ids)
        if role is Role.DECODE and room.answered.reads and room.tokens == 0:
            new, room.tokens = new - 1, 1
        if role is Role.DECODE:
            room.tokens += len(delta.token_ids)
        if new > 0:
            room.answered.reads.append((now, new))
        if role is Role.DECODE and delta.HasField("finish"):
            del self._rooms[delta.room]
            if delta.finish.kind == session_pb2.FINISH_KIND_FAILED:
                room.answered.status = 500
            room.done.set_result(room.answered)

    def open(self, role: Role, stub: Any) -> Any:
        """Opens the Session with one worker; returns its call."""
        hello = session_pb2.SessionHello(version=convert.protocol_to_proto(CURRENT), gateway_id=secrets.token_hex(8))
        outbox = self._outboxes[role] = asyncio.Queue()
        outbox.put_nowait(session_pb2.SessionRequest(hello=hello))

        async def messages() -> Any:
            while True:
                yield await outbox.get()

        return stub.Session(messages())

    def _ask(self, job: Job, *, stream: bool) -> asyncio.Future[Answered]:
        number = secrets.randbits(62) + 1
        room = self._rooms[number] = _Room()
        for role, peer in ((Role.DECODE, Role.PREFILL), (Role.PREFILL, Role.DECODE)):
            submit = session_pb2.Submit(
                request_id=f"bench-{number}",
                room=number,
                nonce=number.to_bytes(NONCE_BYTES, "big"),
                peer=convert.life_to_proto(self._workers[peer].life),
                timeout_ms=TIMEOUT_MS,
                model=self._workers[role].models[0],
                input_ids=range(10, 10 + PROMPT_TOKENS),
                sampling=session_pb2.Sampling(max_new_tokens=job.tokens, ignore_eos=True, skip_special_tokens=True),
                early_first_token=stream and job.tokens > 1,
            )
            self._outboxes[role].put_nowait(session_pb2.SessionRequest(submit=submit))
        return room.done

    async def run(self, job: Job) -> Outcome:
        """One job."""
        if job.kind is Kind.STREAMS:
            answers = await asyncio.gather(*(self._ask(job, stream=True) for _ in range(job.connections)))
            return Outcome.of(answers, tokens=job.tokens)
        began, asked = time.perf_counter(), []
        for number in range(job.requests):
            await asyncio.sleep(began + number / job.per_second - time.perf_counter())
            asked.append(self._ask(job, stream=number % 2 == 1))
        found = await asyncio.gather(*asked)
        whole, streamed = [_at_end(one) for one in found[::2]], found[1::2]
        return Outcome.of(whole).with_others(Outcome.of(streamed, tokens=job.tokens))


def _at_end(answered: Answered) -> Answered:
    """An answer as one who waits for all of it sees it."""
    return Answered(answered.asked, answered.status, answered.reads[-1:])


async def main() -> None:
    """Command line: the address of bootstrap."""
    async with AsyncExitStack() as stack:
        bootstrap = await stack.enter_async_context(open_channel(sys.argv[1]))
        watcher = ClusterWatcher(bootstrap, rng=random.Random(1))
        watcher.start()
        stack.push_async_callback(watcher.close)

        def complete(view: ClusterView) -> bool:
            return all(view.of_role(role) for role in PAIR)

        view = await watcher.wait_for(complete, FIND_MS)
        workers = {role: view.of_role(role)[0] for role in PAIR}
        load = SessionLoad(workers)
        stubs: dict[Role, Any] = {
            Role.PREFILL: prefill_pb2_grpc.PrefillServiceStub,
            Role.DECODE: decode_pb2_grpc.DecodeServiceStub,
        }
        following = []
        for role in PAIR:
            channel = await stack.enter_async_context(open_channel(workers[role].address))
            following.append(asyncio.create_task(load.follow(role, load.open(role, stubs[role](channel)))))
        await do_jobs(load)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main())
