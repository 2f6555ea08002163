"""What a device's asynchronous events mean: the words for each, and what follows from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Effect(Enum):
    """What a device does about an event."""

    NONE = "none"
    """It is told in the log. What befalls one queue pair ends in its completions too, and the lane acts on those."""
    PORT = "port"
    """It looks at its port."""
    END = "end"
    """It can't be used any more."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One kind of event."""

    words: str
    level: int
    """Of the log line."""
    effect: Effect = Effect.NONE


_OTHER: Final = Meaning("an event that concerns no lane", logging.DEBUG)
_MEANINGS: Final = {
    "PORT_ERR": Meaning("a port went down", logging.WARNING, Effect.PORT),
    "PORT_ACTIVE": Meaning("a port is active", logging.INFO, Effect.PORT),
    "DEVICE_FATAL": Meaning("the device failed", logging.ERROR, Effect.END),
    "CQ_ERR": Meaning("its completion queue failed", logging.ERROR, Effect.END),
    "QP_FATAL": Meaning("a queue pair failed", logging.WARNING),
    "QP_REQ_ERR": Meaning("a queue pair got a request that makes no sense", logging.WARNING),
    "QP_ACCESS_ERR": Meaning("a queue pair got a request that has no right", logging.WARNING),
    "GID_CHANGE": Meaning("a port's GIDs changed", logging.INFO),
    "LID_CHANGE": Meaning("a port's local id changed", logging.WARNING),
    "PKEY_CHANGE": Meaning("a port's partitions changed", logging.WARNING),
}


def meaning_of(name: str) -> Meaning:
    """What an event means. name: as in `IBV_EVENT_...`, without that."""
    return _MEANINGS.get(name, _OTHER)
