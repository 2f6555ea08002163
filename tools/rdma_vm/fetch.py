"""Fetches what a guest is made of, once: Debian packages, downloaded and unpacked but not installed."""

from __future__ import annotations

import getpass
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.rdma_vm import guest, initrd
from tools.rdma_vm.kit import Kit, RdmaVmError
from tools.rdma_vm.steps import made_once, output, step

KERNEL_SERIES: Final = "linux-image-6.12-amd64"
"""Debian's package that stands for the newest kernel of this series. The kernel for clouds has neither rxe nor 9p."""
EMULATOR_PACKAGE: Final = "qemu-system-x86"
PROGRAM_PACKAGES: Final = ("busybox-static", "ibverbs-utils", "iproute2", "kmod", "perftest", "rdmacm-utils")
"""Programs of the layer, fetched with what they need. The kernel loads rxe's checksum module through kmod."""
FILE_PACKAGES: Final = (
    *("rdma-core", "ibverbs-providers", "libibverbs1", "librdmacm1", "libibumad3", "libibverbs-dev", "librdmacm-dev"),
    *("libnl-3-200", "libnl-route-3-200", "libpci3", "libkmod2", "python3-pyverbs", "libpython3.11"),
)
"""Other parts of the layer, fetched alone: in full they would bring services and another Python."""
_NEEDED_PROGRAMS: Final = ("apt-get", "dpkg-deb", "setpriv")
_CHECK: Final = ("bash", "-c", 'rdma link; [ "$(rdma link | grep -c "state ACTIVE")" = 2 ]')


def ensure(directory: Path) -> Kit:
    """The kit below `directory`, fetched if it is not there; callers at the same time make it once.

    A kit gets its name when it is complete and a guest has started from it, so an interrupted one is made anew.
    Raises RdmaVmError.
    """
    kit = Kit.of(directory)
    made_once(kit.folder, lambda building: build(Kit(building)))
    return kit


def build(kit: Kit) -> None:
    """Fetches and unpacks everything into the kit's folder, and tries it."""
    if lacking := [name for name in _NEEDED_PROGRAMS if shutil.which(name) is None]:
        raise RdmaVmError(
            f"the RDMA guest is made from Debian's packages, and this machine has no {', '.join(lacking)}"
        )
    with tempfile.TemporaryDirectory(prefix="apt-", dir=kit.folder) as name:
        apt = Apt(Path(name))
        with step("read the lists of Debian's packages"):
            apt.update()
        with step("download qemu, the kernel and rdma-core"):
            release = apt.kernel_release()
            emulator = apt.download("emulator", apt.missing(EMULATOR_PACKAGE))
            layer = apt.download("layer", sorted({*PROGRAM_PACKAGES, *FILE_PACKAGES, *apt.missing(*PROGRAM_PACKAGES)}))
            kernel = apt.download("kernel", [f"linux-image-{release}"])
        with step("unpack"):
            unpack(emulator, kit.emulator_root)
            unpack(layer, kit.layer)
            unpack(kernel, kit.layer)
            (kit.layer / "boot" / f"vmlinuz-{release}").rename(kit.kernel)
            shutil.rmtree(kit.layer / "boot")
    _index_modules(kit, release)
    modules = kit.layer / "usr/lib/modules" / release
    kit.initrd.write_bytes(initrd.build(kit.layer / "usr/bin/busybox", modules))
    with step("start it for the first time"):
        if (status := guest.run(kit, _CHECK, guest.Machine(memory_mib=512, timeout_s=300))) != 0:
            raise RdmaVmError(f"a guest was made, but its first start ended with status {status}")


class Apt:
    """apt with lists and a cache of its own, so that it needs neither root nor lists that somebody has updated."""

    def __init__(self, folder: Path) -> None:
        """Keeps everything below `folder`."""
        self._folder = folder
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        self._options = (
            *("-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"),
            *(
                "-o",
                f"APT::Sandbox::User={getpass.getuser()}",
                "-o",
                "Acquire::Languages=none",
                "-o",
                "Acquire::Retries=3",
            ),
        )

    def update(self) -> None:
        """Reads the lists of the sources that this machine has."""
        self._call("apt-get", "update", "-qq")

    def kernel_release(self) -> str:
        """The release of the newest kernel of the series, e.g. 6.12.1+deb12-amd64."""
        depends = self._call("apt-cache", "depends", KERNEL_SERIES)
        found = re.search(r"Depends: linux-image-(\S+)", depends)
        if found is None:
            raise RdmaVmError(f"apt knows no package {KERNEL_SERIES}; it is one of Debian 12 with its security updates")
        return found[1]

    def missing(self, *packages: str) -> list[str]:
        """Which packages an installation of these would bring to this machine, but for newer versions of its own.

        A newer C library beside this machine's loader would run nothing.
        """
        planned = self._call("apt-get", "install", "--simulate", "--no-install-recommends", *packages)
        return re.findall(r"^Inst (\S+) \(", planned, re.MULTILINE)

    def download(self, name: str, packages: Sequence[str]) -> list[Path]:
        """Downloads packages into a folder of this name; apt checks their digests."""
        folder = self._folder / name
        folder.mkdir()
        if packages:
            self._call("apt-get", "download", "-qq", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))

    def _call(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return output(program, *self._options, *arguments, cwd=cwd)


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpacks packages into `root`, with /bin, /sbin and /lib below /usr as in every current Debian."""
    root.mkdir(exist_ok=True)
    for package in packages:
        output("dpkg-deb", "--extract", str(package), str(root))
    for name in ("bin", "sbin", "lib"):
        if (old := root / name).is_dir():
            shutil.copytree(old, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)


def _index_modules(kit: Kit, release: str) -> None:
    """Runs the layer's depmod, which wants to see the modules in /lib."""
    link = kit.layer / "lib"
    link.symlink_to("usr/lib")
    kmod = str(kit.layer / "usr/bin/kmod")
    output("depmod", "-b", str(kit.layer), release, executable=kmod, variables=kit.layer_variables())
    link.unlink()
