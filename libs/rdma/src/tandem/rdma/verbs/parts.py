"""What the lanes of one endpoint share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.core.pages import U32
from tandem.rdma.api import EndpointSettings
from tandem.rdma.memory import Memory
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.hashing import HashThreads


@dataclass(frozen=True, slots=True)
class LaneParts:
    """Open while the endpoint lives."""

    memory: Memory
    settings: EndpointSettings
    devices: tuple[Device, ...]
    keys: tuple[U32, ...]
    """Per device the key of each buffer: a sender's local ones, a receiver's remote ones."""
    nodes: npt.NDArray[np.intp]
    """NUMA node of each buffer, -1 where that is not known."""
    threads: HashThreads
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    """Runs the end of a lane in the background; the endpoint waits for it when it closes."""
