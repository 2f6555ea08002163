"""The file system that the guest's kernel starts with: busybox, an init, and the modules that mount the real root."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
_MODULES: Final = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),
    *("rdma_rxe", "ib_uverbs", "rdma_ucm", "veth"),
)
"""What init loads. Those of RDMA are here too, as loading them needs no search through a mounted root."""
_FOLDERS: Final = ("bin", "dev", "proc", "sys", "mods", "host", "layer", "rw", "newroot")
_WORD: Final = 4


class Archive:
    """A cpio archive of the format newc, which is what the kernel unpacks."""

    def __init__(self) -> None:
        """An empty archive."""
        self._out = bytearray()
        self._inode = 0

    def add(
        self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644, device: tuple[int, int] = (0, 0)
    ) -> None:
        """Adds one entry; `mode` has its kind, `device` is (major, minor) of a device file."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self._put(b"070701" + b"".join(b"%08x" % field for field in fields) + path)
        self._put(data)

    def finish(self) -> bytes:
        """The archive, ended and compressed."""
        self.add("TRAILER!!!", mode=0)
        return gzip.compress(bytes(self._out), compresslevel=1)

    def _put(self, data: bytes) -> None:
        self._out += data + b"\0" * (-len(data) % _WORD)


def in_load_order(modules_dep: str, wanted: tuple[str, ...]) -> Iterator[str]:
    """Files of the wanted modules and of what each needs, needed ones first, each once.

    `modules_dep` is the text that depmod writes: a file, a colon, and the files it needs, the nearest first. A module
    that is not in it is part of the kernel's image.
    """
    needs = {file: after.split() for file, _, after in (line.partition(":") for line in modules_dep.splitlines())}
    file_of = {Path(file).name.split(".")[0].replace("-", "_"): file for file in needs}
    done: set[str] = set()
    for name in wanted:
        if (own := file_of.get(name.replace("-", "_"))) is None:
            continue
        for file in (*reversed(needs[own]), own):
            if file not in done:
                done.add(file)
                yield file


def build(busybox: Path, modules: Path) -> bytes:
    """The compressed archive. `modules` is the folder of one kernel's modules, after depmod."""
    archive = Archive()
    for folder in _FOLDERS:
        archive.add(folder, mode=stat.S_IFDIR | 0o755)
    archive.add("dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("dev/null", mode=stat.S_IFCHR | 0o666, device=(1, 3))
    archive.add("bin/busybox", busybox.read_bytes(), stat.S_IFREG | 0o755)
    names = []
    for file in in_load_order((modules / "modules.dep").read_text(encoding="utf-8"), _MODULES):
        data = (modules / file).read_bytes()
        names.append(f"mods/{Path(file).name.removesuffix('.xz')}")
        archive.add(names[-1], lzma.decompress(data) if file.endswith(".xz") else data)
    init = (_HERE / "guest" / "init.sh").read_text(encoding="utf-8")
    archive.add("init", init.replace("@MODULES@", " ".join(names)).encode(), stat.S_IFREG | 0o755)
    return archive.finish()
