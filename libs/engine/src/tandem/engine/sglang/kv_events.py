"""What SGLang's prefix cache holds: its own KV events, taken where its scheduler publishes them.

SGLang hashes pages as tandem.core.kv_index does, so its hashes are passed on as they are. Those of a LoRA adapter or a
salted cache differ, and match no prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisher,
    EventPublisherFactory,
    KVEventsConfig,
    StorageMedium,
)
from sglang.srt.runtime_context import get_observability

from tandem.core.kv_index import KvChange, PageHash

PUBLISHER: Final = "tandem"
"""Name of the publisher, as SGLang's argument kv_events_config has it."""
_64_BITS: Final = (1 << 64) - 1


class TandemPublisher(EventPublisher):  # type: ignore[misc]
    """Holds events until the scheduler's step is over; hooks.tell_held takes them."""

    def __init__(self, **config: object) -> None:
        """config: nothing that we need."""
        self._changes: list[KvChange] = []

    def publish(self, batch: Any) -> None:
        """Called by SGLang's scheduler."""
        self._changes += changes_of(batch.events)

    def take(self) -> list[KvChange]:
        """What has come since the last time, in order."""
        taken, self._changes = self._changes, []
        return taken

    def shutdown(self) -> None:
        """Nothing to end."""


def register() -> None:
    """Adds the publisher to SGLang."""
    EventPublisherFactory.register_publisher(PUBLISHER, TandemPublisher)


def ours() -> bool:
    """Whether SGLang was started with this publisher, and not with one that its user wants."""
    config = get_observability().kv_events_config
    return bool(config) and KVEventsConfig.from_cli(config).publisher == PUBLISHER


def changes_of(events: Iterable[Any]) -> Iterable[KvChange]:
    """SGLang's events as changes, without numbers. Only what lies in the KV pool itself counts, not what was moved to
    slower memory."""
    for event in events:
        match event:
            case AllBlocksCleared():
                yield KvChange(0, cleared=True)
            case BlockStored(medium=StorageMedium.GPU):
                yield KvChange(0, stored=_pages(event.block_hashes))
            case BlockRemoved(medium=StorageMedium.GPU):
                yield KvChange(0, removed=_pages(event.block_hashes))


def _pages(hashes: Iterable[int]) -> tuple[PageHash, ...]:
    """SGLang's are signed."""
    return tuple(PageHash(each & _64_BITS) for each in hashes)
