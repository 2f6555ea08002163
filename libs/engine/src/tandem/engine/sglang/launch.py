"""One running SGLang: its processes, started and ended, and its way in. Touches the internals of sglang.Engine.

SGLang wants to own the process that it is started in: it takes SIGQUIT and SIGTERM, kills every child of the process at
exit, and ends the process when a child dies. A worker is more than its engine, so here SGLang is started in a thread of
its own, where it touches no signal; its answers are read by a task of ours; and only its own processes are killed.

Its import takes half a minute and nothing can cut it short: a worker that is stopped meanwhile leaves that thread where
it is, and sees to it that no process comes of it any more.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError

log = logging.getLogger(__name__)

REAP_TIMEOUT_S: Final = 10.0


class Births:
    """Processes that are started with multiprocessing, which only SGLang does here; once ended, there are no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Every process that is started meanwhile is one of these. Starting one after the end raises TandemError."""
        start = BaseProcess.start

        def start_unless_ended(process: BaseProcess) -> None:
            with self._lock:
                if self._ended:
                    raise TandemError(ErrorReason.DRAINING, "the engine is closing")
                start(process)
                log.info("SGLang started process %s", process.pid)

        BaseProcess.start = start_unless_ended  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            BaseProcess.start = start  # type: ignore[method-assign]

    def end(self) -> None:
        """Kills what was started and waits for its end. Nothing is started afterwards."""
        with self._lock:
            self._ended = True
        _kill([child.pid for child in multiprocessing.active_children() if child.pid is not None])


class RunningSglang:
    """Make it on the main thread's event loop; `start`, then `generate` and `abort`; at last `close`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[TandemError] = loop.create_future()
        """Done once SGLang can't go on."""
        # The kernel ends SGLang's processes together with the thread that started them: it lives as long as they do.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sglang")
        self._births = Births()
        self._engine: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._pids: list[int] = []
        try:
            loop.add_signal_handler(signal.SIGQUIT, self._on_sigquit)
        except (ValueError, RuntimeError) as error:
            raise TandemError(
                ErrorReason.ENGINE_FAILED, "SGLang tells of a dead child by signal: start it on the main thread's loop"
            ) from error

    async def start(self, make_args: Callable[[], Mapping[str, Any]]) -> None:
        """Starts SGLang and returns once its model is loaded. make_args runs in its thread, before anything else.

        Raises TandemError: INVALID_ARGUMENT for arguments that SGLang refuses, ENGINE_FAILED if it did not come up.
        """
        loop = asyncio.get_running_loop()
        made = loop.run_in_executor(self._starter, _make, make_args, self._births)
        # Whoever gives up waiting does not care how it ends.
        made.add_done_callback(lambda made: made.cancelled() or made.exception())
        await asyncio.wait([made])
        if (error := made.exception()) is not None:
            # SGLang raises whatever it likes.
            self._births.end()
            raise _start_error(error) from error
        self._engine = made.result()
        self._pids = list(self._engine.get_all_child_pids())
        # It made itself a loop in its thread; ours is the one that it will run on.
        self._engine.loop.close()
        self._engine.loop = loop
        self._reader = loop.create_task(self._read(), name="sglang answers")
        self._reader.add_done_callback(self._on_reader_done)

    async def _read(self) -> None:
        """Takes SGLang's answers, in place of the task that it would start with its signal handlers."""
        manager = self._engine.tokenizer_manager
        manager.event_loop = asyncio.get_running_loop()
        await manager.handle_loop()

    def _on_reader_done(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled():
            self._fail(f"SGLang's answers can't be read any more: {reader.exception()}")

    def _on_sigquit(self) -> None:
        self._fail("a process of SGLang died; its log says why")

    def _fail(self, message: str) -> None:
        if not self.failed.done():
            log.error("%s", message)
            self.failed.set_result(TandemError(ErrorReason.ENGINE_FAILED, message))

    @property
    def context_tokens(self) -> int:
        """Longest prompt with its answer."""
        return int(self._engine.tokenizer_manager.context_len)

    @property
    def pool_tokens(self) -> int:
        """Tokens that the KV pool holds."""
        return int(self._engine._scheduler_init_result.scheduler_infos[0]["max_total_num_tokens"])

    @property
    def max_running(self) -> int:
        """Sequences that run at the same time, at most; 0 if SGLang decides as it goes."""
        from sglang.srt.runtime_context import get_schedule

        return int(get_schedule().max_running_requests or 0)

    async def generate(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        """SGLang's answers to one request, each with what is new since the one before."""
        answers = await self._engine.async_generate(**request)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                yield answer

    def abort(self, rid: str) -> None:
        """Ends a request; its last answer still comes through its stream."""
        self._engine.tokenizer_manager.abort_request(rid)

    async def check_switch(self, role: str) -> None:
        """Whether SGLang would take another role now. Raises TandemError(NOT_SUPPORTED) with what is in the way."""
        answer = await self._ask_switch(role, prepare_only=True)
        if not answer.success:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"SGLang does not become a {role} server: {answer.message}")

    async def switch(self, role: str) -> None:
        """Takes another role. Raises TandemError(ENGINE_FAILED): half of the old one may be gone."""
        answer = await self._ask_switch(role, prepare_only=False)
        if not answer.success:
            raise TandemError(ErrorReason.ENGINE_FAILED, f"SGLang did not become a {role} server: {answer.message}")

    async def _ask_switch(self, role: str, *, prepare_only: bool) -> Any:
        from sglang.srt.managers.io_struct import PdRoleSwitchReqInput

        # SGLang captures decode's CUDA graphs when a prefill server becomes one, and wants to be told what they need;
        # if they don't fit it goes on without them.
        request = PdRoleSwitchReqInput(new_role=role, decode_cuda_graph_memory_gb=0.0, prepare_only=prepare_only)
        asked = asyncio.ensure_future(self._engine.tokenizer_manager.pd_role_switch(request))
        await asyncio.wait([asked, self.failed], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        raise self.failed.result()

    async def close(self) -> None:
        """Kills SGLang's processes and waits until they are gone. Idempotent.

        A thread that is importing SGLang still goes on until the process ends; see `tandem.rpc.run.leave`.
        """
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        loop = asyncio.get_running_loop()
        if self._engine is None:
            self._births.end()
        else:
            await loop.run_in_executor(self._starter, self._end)
        self._starter.shutdown(wait=False)
        loop.remove_signal_handler(signal.SIGQUIT)

    def _end(self) -> None:
        watchdog = self._engine.tokenizer_manager._subprocess_watchdog
        if watchdog is not None:
            watchdog.stop()
        _kill(self._pids)
        self._pids = []


@contextlib.contextmanager
def kept_logging(sglang_level: str) -> Iterator[None]:
    """SGLang replaces the root logger's handlers when it starts: puts the service's own back, and lets SGLang's
    loggers speak from sglang_level on."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("sglang").setLevel(sglang_level.upper())


def _make(make_args: Callable[[], Mapping[str, Any]], births: Births) -> Any:
    log.info("importing SGLang")
    args = make_args()
    import sglang

    with births.watched():
        engine = sglang.Engine(**args)
    atexit.unregister(engine.shutdown)
    return engine


def _start_error(error: BaseException) -> TandemError:
    if isinstance(error, TandemError):
        return error
    refused = isinstance(error, ValueError | TypeError)
    reason = ErrorReason.INVALID_ARGUMENT if refused else ErrorReason.ENGINE_FAILED
    return TandemError(reason, f"SGLang did not start: {error}")


def _kill(pids: list[int]) -> None:
    """Kills child processes and waits for their end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for child in multiprocessing.active_children():
        if child.pid in pids:
            child.join(REAP_TIMEOUT_S)
