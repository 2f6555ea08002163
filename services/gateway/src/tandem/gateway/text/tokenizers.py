"""The tokenizers of all models: which path each has; loaded when its model comes or is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.text.tokenizer import Encoder, PromptTokenizer
from tandem.rpc.tasks import TaskSupervisor

log = logging.getLogger(__name__)

MAX_LOADED: Final = 32
"""Tokenizers that are kept; those used longest ago go first."""


class TokenizersOf(Protocol):
    """Where the tokenizer of a model is found."""

    async def of(self, model: str) -> PromptTokenizer:
        """The tokenizer of a model; waits until it is loaded. Raises NO_TOKENIZER."""


@dataclass(frozen=True, slots=True)
class TokenizerPaths:
    """Where each model's tokenizer may be."""

    own: str
    """The gateway's own, loaded when it starts; also of models of which nobody says anything else."""
    named: Mapping[str, str]
    """By model, from the settings."""
    reported: Callable[[str], tuple[str, ...]]
    """What the workers of a model say, each path once."""

    def of(self, model: str) -> tuple[str, ...]:
        """Paths to try in turn.

        What workers say holds for their own machines: where that can't be read here, the gateway's own is taken if it
        has the same name, and nothing else is guessed: another model's tokens would be answered with nonsense.
        """
        if model in self.named:
            return (self.named[model],)
        found = self.reported(model)
        if not found or any(_same(path, self.own) for path in found):
            return (self.own,)
        alike = any(Path(path).name == Path(self.own).name for path in found)
        return (*found, self.own) if alike else found


class Tokenizers:
    """Loads and keeps tokenizers. Everything runs on one loop, loading in threads."""

    def __init__(self, paths: TokenizerPaths, own: PromptTokenizer, load: Callable[[str], PromptTokenizer]) -> None:
        """own: of `paths.own`, never dropped. load: makes the tokenizer of a path; may block, and raise TandemError."""
        self._paths = paths
        self._own = own
        self._load = load
        self._loaded: dict[str, asyncio.Future[PromptTokenizer]] = {}
        """By path, used longest ago first."""
        self._tasks = TaskSupervisor(max_tasks=MAX_LOADED)

    def path_of(self, model: str) -> str:
        """The path that is tried first."""
        return self._paths.of(model)[0]

    def expect(self, models: Iterable[str]) -> None:
        """Models have come: their first requests are not to wait long."""
        for model in models:
            if self._paths.of(model) != (self._paths.own,):
                with suppress(TandemError):  # too many at once: it is loaded when it is asked for
                    self._tasks.spawn(self._warm(model), f"tokenizer of {model}")

    async def of(self, model: str) -> PromptTokenizer:
        """The tokenizer of a model; waits until it is loaded. Raises NO_TOKENIZER."""
        problems: list[str] = []
        for path in self._paths.of(model):
            if _same(path, self._paths.own):
                return self._own
            try:
                return await asyncio.shield(self._at(path))
            except TandemError as error:
                problems.append(error.message)
        raise TandemError(
            ErrorReason.NO_TOKENIZER,
            f"The gateway has no tokenizer for {model!r}: {' '.join(problems)[:500]} TANDEM_GATEWAY_TOKENIZERS can name"
            " one.",
            field="model",
        )

    async def close(self) -> None:
        """Lets the threads end."""
        await self._tasks.close()
        for loading in self._loaded.values():
            if loading.done() and not loading.cancelled() and loading.exception() is None:
                loading.result().close()
        self._loaded.clear()
        self._own.close()

    def _at(self, path: str) -> asyncio.Future[PromptTokenizer]:
        loading = self._loaded.pop(path, None)
        if loading is None:
            while len(self._loaded) >= MAX_LOADED:
                # Its threads end once nobody uses it any more.
                del self._loaded[next(iter(self._loaded))]
            loading = asyncio.ensure_future(asyncio.to_thread(self._load, path))
            loading.add_done_callback(partial(self._settle, path))
        self._loaded[path] = loading
        return loading

    def _settle(self, path: str, loading: asyncio.Future[PromptTokenizer]) -> None:
        """What could not be loaded is tried again when it is asked for again."""
        if loading.cancelled() or loading.exception() is not None:
            log.warning("the tokenizer %s can't be loaded", path)
            if self._loaded.get(path) is loading:
                del self._loaded[path]
        else:
            log.info("the tokenizer %s is loaded", path)

    async def _warm(self, model: str) -> None:
        with suppress(TandemError):  # who asks for it is told
            await self.of(model)


def loader(make: Callable[[str], Encoder], threads: int) -> Callable[[str], PromptTokenizer]:
    """Makes tokenizers of paths. threads: of each, for long prompts."""
    return lambda path: PromptTokenizer(make(path), threads=threads)


@lru_cache(1024)
def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
