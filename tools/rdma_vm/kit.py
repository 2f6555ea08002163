"""What is fetched once and every guest is made of: kernel, first file system, layer and emulator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
_RECIPE: Final = ("fetch.py", "initrd.py", "guest/init.sh")
_EMULATOR: Final = "qemu-system-x86_64"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"


class RdmaVmError(Exception):
    """The guest cannot be made or started; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Kit:
    """A folder that is complete once it has its final name, and does not change after that."""

    folder: Path

    @classmethod
    def of(cls, directory: Path) -> Kit:
        """The kit below `directory` that this version of the tool makes; it need not be there yet.

        Its name is a digest of the recipe, so that a checkout with another recipe makes a kit of its own.
        """
        digest = hashlib.sha256(b"\0".join((_HERE / name).read_bytes() for name in _RECIPE)).hexdigest()
        return cls(directory / f"kit-{digest[:12]}")

    def is_set_up(self) -> bool:
        """Whether it has been fetched."""
        return self.folder.is_dir()

    @property
    def kernel(self) -> Path:
        """The kernel's image."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The file system that the kernel starts with."""
        return self.folder / "initrd.img"

    @property
    def layer(self) -> Path:
        """What the guest has above this machine's root: kernel modules, rdma-core, pyverbs, perftest, headers."""
        return self.folder / "layer"

    @property
    def emulator_root(self) -> Path:
        """qemu and the libraries that this machine lacks for it."""
        return self.folder / "emulator"

    def emulator(self) -> list[str]:
        """qemu and where its firmware is. Where qemu is installed already, that one is taken."""
        own = self.emulator_root / "usr/bin" / _EMULATOR
        if not own.is_file():
            return [_EMULATOR]
        share = self.emulator_root / "usr/share"
        return [str(own), "-L", str(share / "qemu"), "-L", str(share / "seabios")]

    def emulator_variables(self) -> dict[str, str]:
        """What the environment of qemu needs."""
        libraries = self.emulator_root / LIBRARIES
        return {"LD_LIBRARY_PATH": str(libraries), "QEMU_MODULE_DIR": str(libraries / "qemu")}

    def layer_variables(self) -> dict[str, str]:
        """What the environment of a program of the layer needs when it runs on this machine."""
        return {"LD_LIBRARY_PATH": str(self.layer / LIBRARIES)}
