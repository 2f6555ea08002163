"""The CUDA driver by ctypes: what it takes to copy between a GPU's memory and pinned host memory, and to let network
cards at a GPU's memory; nothing more.

Only this module knows libcuda; it needs no CUDA toolkit and no torch. Every failed call raises TandemError with the
call's name and the driver's own words.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64

LIBRARY: Final = "libcuda.so.1"

_INVALID_VALUE: Final = 1
_MEMORY_TYPE: Final = 2
"""Pointer attribute: which kind of memory an address is in."""
_DEVICE_MEMORY: Final = 2
"""Its value for a GPU's memory."""
_DEVICE_ORDINAL: Final = 9
"""Pointer attribute: number of the GPU."""
_PORTABLE: Final = 1
"""Pinned for every context of the process."""
_NON_BLOCKING: Final = 1
"""A stream that does not wait for the default stream."""

_DMA_BUF: Final = 1
"""Kind of handle: a descriptor of a dma-buf."""
_WRITES_ORDERING: Final = 118
"""Device attribute: from whom on writes of other devices are seen without a flush."""
_SEEN_BY_OWNER: Final = 100
"""Its value, and the scope of a flush, for what runs on the GPU itself."""
_CURRENT_CONTEXT: Final = 0
"""Target of a flush."""

_NEWER: Final[dict[str, tuple[Any, ...]]] = {
    "cuMemGetHandleForAddressRange": (c_void_p, c_uint64, c_size_t, c_int, c_uint64),
    "cuFlushGPUDirectRDMAWrites": (c_int, c_int),
}
"""Calls that drivers have since CUDA 11.7."""
_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuGetErrorString": (c_int, c_void_p),
}


class Cuda:
    """The loaded driver."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises TandemError(NOT_SUPPORTED) where there is no driver, TRANSFER_FAILED if it does not start."""
        try:
            self._waiting = ctypes.CDLL(library)
            # To give the GIL up means to wait for it again, up to 5 ms beside a busy scheduler: too dear for each of
            # the many copies of a chunk. They are only queued, so they return at once and keep it.
            self._brief = ctypes.PyDLL(library)
        except OSError as error:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"the CUDA driver can't be loaded: {error}") from error
        for name, arguments in _ARGUMENTS.items():
            for calls in (self._waiting, self._brief):
                getattr(calls, name).argtypes = arguments
                getattr(calls, name).restype = c_int
        self._newer = all(hasattr(self._waiting, name) for name in _NEWER)
        for name, arguments in _NEWER.items() if self._newer else ():
            getattr(self._waiting, name).argtypes = arguments
            getattr(self._waiting, name).restype = c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """One call that may take its time; other threads of Python run meanwhile."""
        self._check(name, getattr(self._waiting, name)(*arguments))

    def export(self, address: int, size: int) -> int:
        """A descriptor of the dma-buf that holds memory of a GPU; the caller closes it. Both are whole pages.

        Raises TandemError: NOT_SUPPORTED for a driver before CUDA 11.7, TRANSFER_FAILED if it refuses.
        """
        if not self._newer:
            raise TandemError(ErrorReason.NOT_SUPPORTED, "the CUDA driver is older than 11.7, which has dma-bufs first")
        fd = c_int(-1)
        self.call("cuMemGetHandleForAddressRange", byref(fd), address, size, _DMA_BUF, 0)
        return fd.value

    def device_of(self, address: int) -> int | None:
        """Number of the GPU that an address belongs to; None for memory of the host."""
        kind, ordinal = c_uint(), c_int()
        code = self._waiting.cuPointerGetAttribute(byref(kind), _MEMORY_TYPE, address)
        if code == _INVALID_VALUE or (code == 0 and kind.value != _DEVICE_MEMORY):
            return None  # the driver knows no host memory but what it has pinned
        self._check("cuPointerGetAttribute", code)
        self.call("cuPointerGetAttribute", byref(ordinal), _DEVICE_ORDINAL, address)
        return ordinal.value

    def queue(self, name: str, rows: U64, stream: c_void_p, *, device_first: bool) -> None:
        """Puts copies into a stream, one call per row (device address, host address, bytes)."""
        call = getattr(self._brief, name)
        for device, host, size in rows.tolist():
            target, source = (device, host) if device_first else (host, device)
            self._check(name, call(target, source, size, stream))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        text = c_char_p()
        self._waiting.cuGetErrorString(code, byref(text))
        words = text.value.decode(errors="replace") if text.value else "unknown error"
        raise TandemError(ErrorReason.TRANSFER_FAILED, f"{name}: {words} ({code})")


class CudaDevice:
    """One GPU, through its primary context, which is the one that torch uses, and a stream of its own.

    Every call but `wait_for` belongs on the thread that made it.
    """

    def __init__(self, cuda: Cuda, ordinal: int) -> None:
        self.ordinal = ordinal
        self._cuda = cuda
        self._stream = c_void_p()
        context = c_void_p()
        cuda.call("cuDevicePrimaryCtxRetain", byref(context), ordinal)
        try:
            cuda.call("cuCtxSetCurrent", context)
            cuda.call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
        except TandemError:
            cuda.call("cuDevicePrimaryCtxRelease_v2", ordinal)
            raise

    def pin(self, address: int, size: int) -> None:
        """Pins host memory, so that the GPU reaches it by itself: a copy of other memory would block its caller."""
        self._cuda.call("cuMemHostRegister_v2", address, size, _PORTABLE)

    def unpin(self, address: int) -> None:
        """Undoes `pin`."""
        self._cuda.call("cuMemHostUnregister", address)

    def queue_downloads(self, rows: U64) -> None:
        """Queues copies to the host: rows of (device address, host address, bytes)."""
        self._cuda.queue("cuMemcpyDtoHAsync_v2", rows, self._stream, device_first=False)

    def queue_uploads(self, rows: U64) -> None:
        """Queues copies to the device: rows of (device address, host address, bytes)."""
        self._cuda.queue("cuMemcpyHtoDAsync_v2", rows, self._stream, device_first=True)

    def finish(self) -> None:
        """Waits until every queued copy is done."""
        self._cuda.call("cuStreamSynchronize", self._stream)

    def sees_writes(self) -> bool:
        """Whether what runs on the GPU sees writes of network cards without a flush."""
        value = c_int()
        self._cuda.call("cuDeviceGetAttribute", byref(value), _WRITES_ORDERING, self.ordinal)
        return value.value >= _SEEN_BY_OWNER

    def flush_writes(self) -> None:
        """Has the GPU see every write of a network card whose arrival this process knows of."""
        self._cuda.call("cuFlushGPUDirectRDMAWrites", _CURRENT_CONTEXT, _SEEN_BY_OWNER)

    def wait_for(self, event: int) -> None:
        """Copies that are queued from now on wait, on the GPU, for a recorded event. From any thread."""
        self._cuda.call("cuStreamWaitEvent", self._stream, event, 0)

    def close(self) -> None:
        """Gives stream and context back."""
        try:
            self._cuda.call("cuStreamDestroy_v2", self._stream)
        finally:
            self._cuda.call("cuDevicePrimaryCtxRelease_v2", self.ordinal)
