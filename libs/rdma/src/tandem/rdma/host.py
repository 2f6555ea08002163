"""What cma needs to know of this host: whose memory may be read, and whether a pid is who it claims to be."""

from __future__ import annotations

import ctypes
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import CmaProcess
from tandem.rdma.iov import pull_bytes

NONCE_BYTES: Final = 16
_PR_SET_PTRACER: Final = 0x59616D61
_PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)
_CAP_SYS_PTRACE: Final = 1 << 19
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def host_identity() -> str:
    """Names the kernel's life, the pid namespace, the user namespace and the user: cma needs all of them equal."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = "/".join(str(Path(f"/proc/self/ns/{name}").stat().st_ino) for name in ("pid", "user"))
    return f"{boot}/{namespaces}/{os.geteuid()}"


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot. Raises OSError if there is none."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name before it may hold anything


class OwnProcess:
    """This process as a cma sender shows it. Keep it alive as long as a peer may check the nonce."""

    def __init__(self) -> None:
        self._nonce = ctypes.create_string_buffer(secrets.token_bytes(NONCE_BYTES), NONCE_BYTES)
        self.shown = CmaProcess(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            nonce_address=ctypes.addressof(self._nonce),
            nonce=bytes(self._nonce.raw),
        )


def why_no_pull() -> str:
    """Why this process can't read others of its user; empty if it can, as far as one can tell beforehand."""
    own = (ctypes.c_ubyte * 1)()
    try:
        pull_bytes(os.getpid(), ctypes.addressof(own), 1)
    except OSError as error:
        return f"process_vm_readv is not allowed here: {error.strerror}"
    scope = _yama_scope()
    if scope >= 2 and not (scope == 2 and _has_ptrace_capability()):
        return f"kernel.yama.ptrace_scope is {scope}"
    return ""


def let_peers_pull() -> bool:
    """Sender: under yama scope 1, lets processes of the same user read this one, which plain Unix rules allow anyway.

    Returns whether that was needed.
    """
    if _yama_scope() != 1:
        return False
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    return True


def require_process(shown: CmaProcess) -> None:
    """Checks that a pid is the process that showed itself: start time first, then the nonce in its memory.

    Raises TandemError: LINK_LOST if it is another or gone, NOT_SUPPORTED if it may not be read.
    """
    try:
        started = start_ticks(shown.pid)
        same = started == shown.start_ticks and len(shown.nonce) == NONCE_BYTES
        found = pull_bytes(shown.pid, shown.nonce_address, NONCE_BYTES) if same else b""
    except PermissionError as error:
        raise TandemError(
            ErrorReason.NOT_SUPPORTED, f"process {shown.pid} may not be read: {error.strerror}"
        ) from error
    except (OSError, IndexError, ValueError) as error:
        raise TandemError(ErrorReason.LINK_LOST, f"process {shown.pid} can't be read: {error}") from error
    if not same:
        raise TandemError(ErrorReason.LINK_LOST, f"process {shown.pid} is another one: its start time differs")
    if not hmac.compare_digest(found, shown.nonce):
        raise TandemError(ErrorReason.LINK_LOST, f"process {shown.pid} is another one: its nonce differs")


def _yama_scope() -> int:
    try:
        return int(_YAMA.read_text())
    except OSError:
        return 0  # no yama in this kernel


def _has_ptrace_capability() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_SYS_PTRACE)
    return False
