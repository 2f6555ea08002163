"""Stands in for an SGLang whose processes never get ready, and that starts another when one dies."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any


class Engine:
    """As sglang.Engine, as far as it gets."""

    def __init__(self, **_: Any) -> None:
        multiprocessing.set_start_method("spawn", force=True)
        while True:
            child = multiprocessing.Process(target=signal.pause)
            child.start()
            child.join()
