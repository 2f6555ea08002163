"""A stand-in for the CUDA driver (standin.c), compiled where a test first needs it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from tandem.rdma.api import Buffer

SOURCE = Path(__file__).with_name("standin.c")


def build(folder: Path) -> Path:
    """Compiles it; returns the library."""
    library = folder / "libstandin.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-pthread", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library


class StandIn:
    """One driver with memory of its own: each has its copy of the library."""

    def __init__(self, built: Path, folder: Path) -> None:
        folder.mkdir()
        self.library = str(shutil.copy(built, folder / "libcuda.so.1"))
        self._calls = ctypes.CDLL(self.library)
        self._calls.standin_allocate.restype = ctypes.c_uint64
        self._calls.standin_allocate.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p)
        self._calls.standin_last_event.restype = ctypes.c_uint64
        self._calls.standin_pinned_bytes.restype = ctypes.c_uint64
        self._calls.standin_calls.restype = ctypes.c_long

    def allocate(self, *shape: int, device: int = 0) -> tuple[Buffer, np.ndarray]:
        """Device memory for an array of bytes: its address, which no host code may touch, and a view of what it holds.

        It lives as long as the process.
        """
        size, view = int(np.prod(shape)), ctypes.c_void_p()
        address = self._calls.standin_allocate(size, device, ctypes.byref(view))
        assert address
        assert view.value
        return Buffer(address, size), np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(view.value)).reshape(
            shape
        )

    def fail(self, name: str, code: int = 719) -> None:
        """Makes a call fail from now on; 0 ends that."""
        self._calls.standin_fail(name.encode(), code)

    def calls(self, name: str) -> int:
        """How often a call was made."""
        return int(self._calls.standin_calls(name.encode()))

    def see_writes(self) -> None:
        """Makes it a GPU that sees the writes of other devices by itself."""
        self._calls.standin_ordering(100)

    def hold(self, on: bool) -> None:
        """Holds copies up, or lets them go."""
        self._calls.standin_hold(int(on))

    def wait_held(self) -> None:
        """Blocks until copies are held up."""
        self._calls.standin_wait_held()

    @property
    def last_event(self) -> int:
        """The event that the stream was told to wait for last."""
        return int(self._calls.standin_last_event())

    @property
    def most_queued(self) -> int:
        """Most copies that were queued at the same time."""
        return int(self._calls.standin_most_queued())

    @property
    def pinned_bytes(self) -> int:
        """Host memory that is pinned now."""
        return int(self._calls.standin_pinned_bytes())

    @property
    def open(self) -> int:
        """Contexts and streams that were not given back."""
        return int(self._calls.standin_open())
