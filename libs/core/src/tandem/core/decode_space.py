"""What decode can hold, so that it is asked for no more: the KV pages of its workers, less what requests may need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask


@dataclass(frozen=True, slots=True)
class Capacity:
    """KV pages of all workers that decode one model."""

    tokens: int
    """Of all pages."""
    page_tokens: int
    """The largest page."""
    largest: int
    """Tokens that one sequence may have at most."""

    @classmethod
    def of(cls, workers: Sequence[WorkerInfo]) -> Capacity:
        """Of those that have registered."""
        return cls(
            sum(one.total_pages * one.layout.page_size * one.dp_size for one in workers),
            max((one.layout.page_size for one in workers), default=1),
            max((one.total_pages * one.layout.page_size for one in workers), default=0),
        )


class DecodeSpace:
    """Counts tokens by model, over all workers of it: which of them gets a sequence is the router's choice."""

    def __init__(self, capacity_of: Callable[[str], Capacity], commit: float) -> None:
        """capacity_of: asked by model. commit: how often the pages are given away; 0 = without a bound."""
        self._capacity_of = capacity_of
        self._commit = commit
        self._tokens: Counter[str] = Counter()
        self._sequences: Counter[str] = Counter()
        self._capacities: dict[str, Capacity] = {}

    def require_possible(self, ask: Ask) -> None:
        """Raises INVALID_ARGUMENT for a sequence that no worker's pages could hold."""
        capacity = self._capacity(ask.pool)
        if self._commit and capacity.largest and ask.largest > capacity.largest:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"The prompt and its new tokens are up to {ask.largest} tokens; the KV cache of a worker holds"
                f" {capacity.largest} at most. Ask for fewer new tokens, or shorten the prompt.",
                field="max_tokens",
            )

    def fits(self, ask: Ask) -> bool:
        """Whether there are pages for a request now. One may run alone; where nobody decodes, the router says so."""
        tokens, sequences = self._tokens[ask.pool], self._sequences[ask.pool]
        if not sequences or not self._commit:
            return True
        capacity = self._capacity(ask.pool)
        # The last page of each sequence may be nearly empty.
        need = tokens + ask.cost + (sequences + ask.places) * (capacity.page_tokens - 1)
        return not capacity.tokens or need <= capacity.tokens * self._commit

    def take(self, ask: Ask) -> None:
        """A request has its place."""
        self._tokens[ask.pool] += ask.cost
        self._sequences[ask.pool] += ask.places

    def give(self, ask: Ask) -> None:
        """It has ended."""
        self._tokens[ask.pool] -= ask.cost
        self._sequences[ask.pool] -= ask.places

    def changed(self) -> None:
        """Workers have come or gone."""
        self._capacities.clear()

    def _capacity(self, model: str) -> Capacity:
        found = self._capacities.get(model)
        if found is None:
            found = self._capacities[model] = self._capacity_of(model)
        return found
