"""The first file system of the RDMA guest: what the kernel reads is what was put in, and modules come in order."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.rdma_vm import initrd

HEADER_BYTES = 110
DEPENDENCIES = """\
kernel/a/rdma_rxe.ko: kernel/a/ib-core.ko kernel/b/udp_tunnel.ko
kernel/a/ib-core.ko:
kernel/b/udp_tunnel.ko:
kernel/c/9p.ko.xz: kernel/c/9pnet.ko
kernel/c/9pnet.ko:
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive."""

    name: str
    mode: int
    device: tuple[int, int]
    data: bytes


def entries(archive: bytes) -> Iterator[Entry]:
    """Reads a newc archive as the kernel's documentation describes it, up to its trailer."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + HEADER_BYTES : at + HEADER_BYTES + fields[11] - 1].decode()
        begin = -(-(at + HEADER_BYTES + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return
        yield Entry(name, fields[1], (fields[9], fields[10]), archive[begin : begin + fields[6]])
        at = -(-(begin + fields[6]) // 4) * 4


def test_needed_modules_come_first_and_once() -> None:
    order = list(initrd.in_load_order(DEPENDENCIES, ("9p", "rdma_rxe", "ib_core", "built_in")))
    assert order == [
        *("kernel/c/9pnet.ko", "kernel/c/9p.ko.xz"),
        *("kernel/b/udp_tunnel.ko", "kernel/a/ib-core.ko", "kernel/a/rdma_rxe.ko"),
    ]


def test_the_archive_holds_what_init_needs(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"busybox!")
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    for line in DEPENDENCIES.splitlines():
        file = tmp_path / line.partition(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.name.encode()
        file.write_bytes(lzma.compress(text) if file.suffix == ".xz" else text)
    found = {entry.name: entry for entry in entries(gzip.decompress(initrd.build(tmp_path / "busybox", tmp_path)))}
    assert found["bin/busybox"].data == b"busybox!"
    assert found["mods/9p.ko"].data == b"9p.ko.xz"
    assert found["dev/console"].device == (5, 1)
    assert stat.S_ISCHR(found["dev/console"].mode)
    assert stat.S_ISDIR(found["newroot"].mode)
    assert found["init"].mode == stat.S_IFREG | 0o755
    init = found["init"].data.decode()
    assert "@MODULES@" not in init
    assert "in mods/9pnet.ko mods/9p.ko mods/udp_tunnel.ko mods/ib-core.ko mods/rdma_rxe.ko;" in init
