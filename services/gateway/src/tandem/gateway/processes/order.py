"""What the parent of a gateway's processes tells each of them when it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Self

import orjson


@dataclass(frozen=True, slots=True)
class Order:
    """What a parent tells a process besides the settings that both read from their environment."""

    index: int
    count: int
    folder: str
    """Where the sockets of all are."""
    port: int
    """Of HTTP."""
    replaces: bool = False
    """Another of this index has ended; the others serve."""
    changed: dict[str, str] = field(default_factory=dict)
    """Settings that operators have changed."""

    def text(self) -> str:
        """As an argument of the command line."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def read(cls, text: str) -> Self:
        """What `text` wrote."""
        return cls(**orjson.loads(text))
