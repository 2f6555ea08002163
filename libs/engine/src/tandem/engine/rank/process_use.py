"""What the process of a rank uses, read from the kernel."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from tandem.engine.measures import ProcessUse

_SELF: Final = Path("/proc/self")


def process_use() -> ProcessUse:
    """Of this process, now. Source: getrusage(2) and proc(5)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resident_pages = int((_SELF / "statm").read_text(encoding="ascii").split()[1])
    return ProcessUse(
        cpu_s=used.ru_utime + used.ru_stime,
        resident_bytes=resident_pages * resource.getpagesize(),
        open_fds=len(os.listdir(_SELF / "fd")),
    )
