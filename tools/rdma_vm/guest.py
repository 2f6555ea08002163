"""One guest: a folder that tells it what to run, the qemu that is it, and the status that it leaves."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.rdma_vm.kit import Kit
from tools.rdma_vm.settings import environment, passed_on

STATUS_TIMED_OUT: Final = 124
STATUS_NONE: Final = 125
"""What `run` returns where the guest gave no status."""
_BOOT: Final = Path(__file__).resolve().parent / "guest" / "boot.sh"
RESULTS_INSIDE: Final = "/results"
"""Where the guest sees Machine.results."""
_RESULTS_VARIABLE: Final = "TANDEM_RDMA_VM_RESULTS"
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on"
)


@dataclass(frozen=True, slots=True)
class Node:
    """One of two guests that are joined by a cable, instead of one guest with two devices."""

    number: int
    """1 or 2."""
    cable: Path
    """A folder that both share, for the sockets which are the cable."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is given."""

    memory_mib: int = 3072
    """Its memory; this machine gives only what the guest touches."""
    cpus: int = 1
    """Emulated processors, each a thread here. One boots fastest and steadiest; two carry more bytes."""
    timeout_s: float = 900
    """The guest's longest life."""
    results: Path | None = None
    """A folder of this machine that the guest may write; TANDEM_RDMA_VM_RESULTS names it inside."""
    node: Node | None = None


def run(kit: Kit, command: Sequence[str], machine: Machine) -> int:
    """Runs a command in a guest, in the folder that is current here, and returns its status.

    What the command prints, on stdout or stderr, comes out of this process's stdout. The guest is gone when this
    returns or raises, and also if this process is killed. STATUS_TIMED_OUT and STATUS_NONE stand for a guest that gave
    no status; what its kernel printed is then on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-rdma-vm-") as name:
        job = Path(name)
        _prepare(job, command, machine)
        line = ("setpriv", "--pdeathsig", "KILL", *_command_line(kit, job, machine))
        sys.stdout.flush()
        process = subprocess.Popen(line, env=environment(**kit.emulator_variables()), stdin=subprocess.DEVNULL)
        timed_out = False
        try:
            process.wait(machine.timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            process.kill()
            process.wait()
        return _status(job, machine.timeout_s if timed_out else None)


def command_script(command: Sequence[str], variables: Mapping[str, str], folder: Path) -> str:
    """What the guest's shell reads: the environment and the folder of a command, and the command."""
    path = f"{variables['PATH']}:{_SYSTEM_PATH}" if variables.get("PATH") else _SYSTEM_PATH
    exports = [f"export {name}={shlex.quote(value)}" for name, value in {**variables, "PATH": path}.items()]
    return "\n".join(
        (*exports, f"cd {shlex.quote(str(folder))} || exit {STATUS_NONE}", f"exec {shlex.join(command)}", "")
    )


def _prepare(job: Path, command: Sequence[str], machine: Machine) -> None:
    """Fills the folder that the guest sees as /job."""
    variables = passed_on()
    if machine.results is not None:
        variables[_RESULTS_VARIABLE] = RESULTS_INSIDE
        (job / "with-results").touch()
    if machine.node is not None:
        (job / "node").write_text(f"{machine.node.number}\n", encoding="utf-8")
    (job / "command.sh").write_text(command_script(command, variables, Path.cwd()), encoding="utf-8")
    shutil.copyfile(_BOOT, job / "boot.sh")


def _command_line(kit: Kit, job: Path, machine: Machine) -> list[str]:
    """qemu and its arguments: no device but a console for output, and the shared folders."""
    line = [*kit.emulator(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    line += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
    line += ["-smp", str(machine.cpus), "-m", str(machine.memory_mib)]
    line += ["-kernel", str(kit.kernel), "-initrd", str(kit.initrd), "-append", _KERNEL_ARGUMENTS]
    line += ["-chardev", f"file,id=log,path={_escaped(job / 'console.log')}", "-serial", "chardev:log"]
    line += [
        "-chardev",
        "stdio,id=output,signal=off",
        "-device",
        "virtio-serial-pci",
        "-device",
        "virtconsole,chardev=output",
    ]
    line += _share("root", Path("/"), "readonly=on,multidevs=remap")
    line += _share("layer", kit.layer, "readonly=on")
    line += _share("job", job, "readonly=off")
    if machine.results is not None:
        line += _share("results", machine.results.absolute(), "readonly=off")
    if (node := machine.node) is not None:
        here, there = (_escaped(node.cable.absolute() / str(number)) for number in (node.number, 3 - node.number))
        wire = f"dgram,id=wire,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
        card = f"virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{node.number},host_mtu=9000"
        line += ["-netdev", wire, "-device", card]
    return line


def _share(tag: str, folder: Path, options: str) -> list[str]:
    """The arguments that let the guest mount a folder."""
    share = f"local,id={tag},path={_escaped(folder)},security_model=none,{options}"
    return ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _escaped(path: Path) -> str:
    """A path inside one of qemu's arguments, where a comma ends a value."""
    return str(path).replace(",", ",,")


def _status(job: Path, timeout_s: float | None) -> int:
    """The command's status, or what stands for none, after telling why."""
    try:
        return int((job / "status").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log = job / "console.log"
        sys.stderr.write(log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")
    if timeout_s is not None:
        print(f"rdma_vm: the guest was ended after {timeout_s:g} s; the lines above are its kernel's", file=sys.stderr)
        return STATUS_TIMED_OUT
    print("rdma_vm: the guest gave no status; the lines above are its kernel's", file=sys.stderr)
    return STATUS_NONE
