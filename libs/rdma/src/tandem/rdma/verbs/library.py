"""pyverbs, whichever release is installed: the one place that knows how they differ.

pyverbs is no dependency of this distribution. Debian's python3-pyverbs lies beside the distribution's Python, where a
virtual environment does not look; it is found there if it was built for this version of Python.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.verbs.chain import Codes

PATHS: Final = ("auto", "batch", "reference")
"""How writes can be posted; see `tandem.rdma.verbs.posting`."""

_DISTRIBUTION: Final = Path("/usr/lib/python3/dist-packages/pyverbs")
_INSTALL: Final = "Debian: apt install python3-pyverbs ibverbs-providers; elsewhere: the rdma-core of your system"
_EVENT_FD: Final = "infinibandevent"
_EVENT: Final = "IBV_EVENT_"
_CLASSES: Final = {
    "pyverbs.device": ("Context",),
    "pyverbs.pd": ("PD",),
    "pyverbs.mr": ("MR",),
    "pyverbs.cq": ("CQ", "CompChannel"),
    "pyverbs.qp": ("QP", "QPCap", "QPInitAttr", "QPAttr"),
    "pyverbs.addr": ("AHAttr", "GlobalRoute", "GID"),
    "pyverbs.wr": ("SGE", "SendWR", "RecvWR"),
}
_LINK_STATUSES: Final = ("IBV_WC_RETRY_EXC_ERR", "IBV_WC_RNR_RETRY_EXC_ERR")

_log = logging.getLogger(__name__)


class Library:
    """pyverbs' classes by their own names, and every constant of its enums (`IBV_...`) as an attribute."""

    Context: Any
    PD: Any
    MR: Any
    CQ: Any
    CompChannel: Any
    QP: Any
    QPCap: Any
    QPInitAttr: Any
    QPAttr: Any
    AHAttr: Any
    GlobalRoute: Any
    GID: Any
    SGE: Any
    SendWR: Any
    RecvWR: Any

    def __init__(self) -> None:
        """Raises ImportError."""
        for module, names in _CLASSES.items():
            loaded = importlib.import_module(module)
            for name in names:
                setattr(self, name, getattr(loaded, name))
        vars(self).update(constants_of(_enums()))
        self.PyverbsError: type[Exception] = importlib.import_module("pyverbs.pyverbs_error").PyverbsError
        self._device = importlib.import_module("pyverbs.device")
        self.codes = Codes(self.IBV_WR_RDMA_WRITE, self.IBV_WR_RDMA_WRITE_WITH_IMM, self.IBV_SEND_SIGNALED)
        self.LINK_STATUSES: tuple[int, ...] = tuple(getattr(self, name) for name in _LINK_STATUSES)
        """Completions that blame the way to the peer, not the write."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this release of pyverbs has no {name}")

    def device_names(self) -> list[str]:
        """Devices of this machine; none where the kernel has no RDMA."""
        try:
            return sorted(device.name.decode() for device in self._device.get_device_list())
        except self.PyverbsError:
            return []

    def open_device(self, name: str) -> tuple[Any, int | None]:
        """A context, and the descriptor of its asynchronous events, which does not block.

        No release shows that descriptor: it is the one that is new. None if there is not just one.
        """
        before = _event_fds()
        context = self.Context(name=name)
        new = _event_fds() - before
        if len(new) != 1:
            return context, None
        (fd,) = new
        os.set_blocking(fd, False)
        return context, fd

    def next_event(self, context: Any) -> str | None:
        """Takes an asynchronous event: its name, without IBV_EVENT_; None if there is none.

        It is acknowledged at once, as destroying the queue pair or queue that it is about waits for that.
        """
        try:
            event = context.get_async_event()
        except self.PyverbsError:
            return None
        code = int(event.event_type)
        event.ack()
        names = (name for name, value in vars(self).items() if name.startswith(_EVENT) and value == code)
        return next(names, f"{_EVENT}{code}").removeprefix(_EVENT)

    def completion_channel(self, context: Any) -> tuple[Any, int]:
        """A completion channel, and its descriptor. Releases before 57 do not show that: it is the one that is new."""
        before = set() if hasattr(self.CompChannel, "fd") else _event_fds()
        channel = self.CompChannel(context)
        if hasattr(channel, "fd"):
            return channel, int(channel.fd)
        (fd,) = _event_fds() - before
        return channel, fd

    def status_text(self, status: int) -> str:
        """Name of a completion's status."""
        named = (name for name, value in vars(self).items() if value == status)
        return next(
            (name for name in named if name.startswith("IBV_WC_") and name.endswith("_ERR")), f"status {status}"
        )


@functools.cache
def load() -> Library:
    """Imports pyverbs. Raises TandemError(NOT_SUPPORTED) that says what is missing, and what to install."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    try:
        if importlib.util.find_spec("pyverbs") is None:
            _import_from(_DISTRIBUTION)
        return Library()
    except ImportError as error:
        raise TandemError(ErrorReason.NOT_SUPPORTED, f"pyverbs can't be loaded: {error}. {_INSTALL}") from error
    finally:
        # pyverbs sets logging up for the whole process when it is imported; that is not its affair.
        logging.root.setLevel(level)
        for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
            logging.root.removeHandler(handler)


def _import_from(folder: Path) -> None:
    """Imports the package that lies in a folder, without the folder's neighbours. Raises ImportError."""
    if not folder.is_dir():
        raise ImportError("it is not installed")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not any(folder.glob(f"*{suffix}")):
        raise ImportError(f"{folder} is for another version of Python than {sys.version_info[0]}.{sys.version_info[1]}")
    spec = importlib.util.spec_from_file_location(
        "pyverbs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyverbs"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["pyverbs"]
        raise


def constants_of(module: ModuleType) -> dict[str, int]:
    """Every constant by name. Built with Cython 3, the module has most of them inside classes of enum."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, enum.IntEnum | enum.IntFlag):
            found |= {member: int(number) for member, number in value.__members__.items()}
        elif isinstance(value, int):
            found[name] = int(value)
    return found


def _enums() -> ModuleType:
    """The constants: releases from 56 on have them in another module than those before."""
    try:
        return importlib.import_module("pyverbs.libibverbs_enums")
    except ImportError:
        return importlib.import_module("pyverbs.enums")


def _event_fds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if _EVENT_FD in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:
            continue  # the descriptor of the listing itself
    return found
