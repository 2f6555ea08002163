"""TaskSupervisor, and what a Stop remembers."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.exits import ExitCode
from tandem.rpc.run import Stop
from tandem.rpc.tasks import TaskSupervisor


async def test_a_crash_is_logged_and_reported_and_the_others_live_on(caplog):
    crashes: asyncio.Queue[tuple[str, Exception]] = asyncio.Queue()
    tasks = TaskSupervisor(on_crash=lambda name, error: crashes.put_nowait((name, error)))
    forever = tasks.spawn(asyncio.Event().wait(), "forever")

    async def fail() -> None:
        raise ValueError("odd")

    tasks.spawn(fail(), "fails")
    name, error = await crashes.get()
    assert name == "fails"
    assert isinstance(error, ValueError)
    assert "task fails crashed" in caplog.text
    assert "ValueError: odd" in caplog.text
    assert not forever.done()
    await tasks.close()
    assert forever.cancelled()
    assert len(tasks) == 0
    assert crashes.empty()


async def test_close_waits_for_what_a_task_does_last():
    tasks, done, started = TaskSupervisor(), [], asyncio.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append(True)

    tasks.spawn(work(), "work")
    await started.wait()
    await tasks.close()
    assert done == [True]


async def test_a_task_that_ends_before_it_began_is_no_reason_to_warn(recwarn):
    tasks = TaskSupervisor()
    tasks.spawn(asyncio.Event().wait(), "never began")
    await tasks.close()
    gc.collect()
    assert not recwarn.list


async def test_there_is_a_bound_and_an_end():
    tasks = TaskSupervisor(max_tasks=1)
    tasks.spawn(asyncio.Event().wait(), "one")
    with pytest.raises(TandemError) as full:
        tasks.spawn(asyncio.Event().wait(), "two")
    assert full.value.reason is ErrorReason.OVERLOADED
    await tasks.close()
    with pytest.raises(TandemError) as closed:
        tasks.spawn(asyncio.Event().wait(), "three")
    assert closed.value.reason is ErrorReason.DRAINING


async def test_the_first_to_ask_for_a_stop_is_the_reason():
    stop = Stop()
    assert not stop.requested
    stop.request("engine lost", ExitCode.ENGINE_LOST)
    stop.request("SIGTERM")
    await stop.wait()
    assert (stop.reason, stop.code) == ("engine lost", ExitCode.ENGINE_LOST)
