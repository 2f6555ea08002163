"""Background tasks: held, watched, and ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tandem.core.errors import ErrorReason, TandemError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")


def contained(call: Callable[[_T], _R], crashed: Callable[[Exception], _R]) -> Callable[[_T], _R]:
    """The same call; where it crashes, that is logged, and `crashed` says what comes of it instead.

    For hooks in the path of somebody whom the crash is not to hit.
    """

    def guarded(argument: _T) -> _R:
        try:
            return call(argument)
        except Exception as error:  # as in a task's guard
            log.exception("%s crashed", call)
            return crashed(error)

    return guarded


class TaskSupervisor:
    """Holds background tasks. A crash is logged and reported once; `close` cancels and awaits all."""

    def __init__(self, *, on_crash: Callable[[str, Exception], None] | None = None, max_tasks: int = 1024) -> None:
        """on_crash: gets the task's name and its error, on the loop. max_tasks: at the same time."""
        self._on_crash = on_crash
        self._max_tasks = max_tasks
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Starts a task. Raises OVERLOADED when there are too many, DRAINING after `close`."""
        if self._closed or len(self._tasks) >= self._max_tasks:
            coroutine.close()
            if self._closed:
                raise TandemError(ErrorReason.DRAINING, f"no task {name}: the process is closing")
            raise TandemError(ErrorReason.OVERLOADED, f"no task {name}: {self._max_tasks} tasks are running")
        task = asyncio.create_task(self._guard(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Python warns of a coroutine that never began, as one does not whose task is cancelled at once.
        task.add_done_callback(lambda _: coroutine.close())
        return task

    async def _guard(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await coroutine
        except Exception as error:  # the one place where a background task's crash ends
            log.exception("task %s crashed", name)
            if self._on_crash is not None:
                self._on_crash(name, error)

    async def close(self) -> None:
        """Cancels every task and waits until all have ended. Idempotent."""
        self._closed = True
        own = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not own]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
