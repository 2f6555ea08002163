"""Becomes another program that dies with the process that started it.

`python -m tandem.cli.leash PARENT_PID PROGRAM ...`. The kernel kills
this process when its parent ends in whatever way, kill -9 included, and keeps that promise over exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Ties this process to its parent, then becomes the program."""
    parent, *program = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
