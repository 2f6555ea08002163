"""The newest pyverbs on PyPI with the rdma-core it comes with: built once, to be tried in a guest."""

from __future__ import annotations

import hashlib
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tools.rdma_vm.fetch import Apt, unpack
from tools.rdma_vm.kit import LIBRARIES
from tools.rdma_vm.steps import made_once, output, step

VERSION: Final = "59.0"
_SOURCE: Final = f"pyverbs=={VERSION} --hash=sha256:b30d56bb620b3d3b4301876f9a04c964be1c76cc6553a451e1465f1c6ac9f20e"
_TOOLS: Final = ("cmake==4.2.1", "cython==3.0.12", "ninja==1.13.0")
_PACKAGES: Final = ("libnl-3-200", "libnl-3-dev", "libnl-route-3-200", "libnl-route-3-dev")
_TARGETS: Final = ("pyverbs/all", "libibverbs/all", "providers/rxe/all")
_OPTIONS: Final = ("-DNO_MAN_PAGES=1", "-DCMAKE_INSTALL_SYSCONFDIR=/etc", "-DCMAKE_BUILD_TYPE=Release")
"""Drivers are named by Debian's /etc/libibverbs.d, and found where LD_LIBRARY_PATH says."""


def ensure(directory: Path) -> Path:
    """The folder below `directory` with `python` and `lib`, made if it is not there. Raises RdmaVmError."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()
    folder = directory / f"pyverbs-{VERSION}-{digest[:12]}"
    made_once(folder, build)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """What the environment of a program needs that is to find this pyverbs."""
    return {"PYTHONPATH": str(folder / "python"), "LD_LIBRARY_PATH": str(folder / "lib")}


def build(folder: Path) -> None:
    """Fetches the sources and what builds them, and leaves only what is built in `folder`."""
    with tempfile.TemporaryDirectory(prefix="sources-", dir=folder) as name:
        work = Path(name)
        with step(f"download pyverbs {VERSION} and what builds it"):
            source, environment = _source(work), _builders(work)
        with step("build rdma-core and pyverbs"):
            made = work / "made"
            configure = ("cmake", "-G", "Ninja", "-S", str(source), "-B", str(made), *_OPTIONS)
            output(*configure, f"-DPython_EXECUTABLE={sys.executable}", variables=environment)
            output("ninja", "-C", str(made), *_TARGETS, variables=environment)
        # Parts of `python` are links into the sources; some of `lib` lead to drivers that were not built.
        shutil.copytree(made / "python", folder / "python")
        shutil.copytree(made / "lib", folder / "lib", symlinks=True)


def _source(work: Path) -> Path:
    """rdma-core's sources, which pyverbs' source distribution contains; pip checks the digest."""
    wanted = work / "wanted.txt"
    wanted.write_text(_SOURCE, encoding="utf-8")
    options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "--dest", str(work))
    output(sys.executable, "-m", "pip", "download", *options, "-r", str(wanted))
    with tarfile.open(work / f"pyverbs-{VERSION}.tar.gz") as archive:
        archive.extractall(work, filter="data")
    return work / f"pyverbs-{VERSION}" / "rdma-core"


def _builders(work: Path) -> dict[str, str]:
    """The environment in which programs find compilers' helpers and headers, none of which is installed."""
    tools, root = work / "tools", work / "root"
    output(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), *_TOOLS)
    apt = Apt(work / "apt")
    apt.update()
    unpack(apt.download("headers", [*_PACKAGES, *apt.missing("pkg-config")]), root)
    libraries = root / LIBRARIES
    return {
        "PATH": f"{tools / 'bin'}:{root / 'usr/bin'}:{sysconfig.get_path('scripts')}:/usr/bin:/bin",
        "PYTHONPATH": str(tools),
        "PKG_CONFIG_PATH": str(libraries / "pkgconfig"),
        "CPATH": str(root / "usr/include/libnl3"),
        "LIBRARY_PATH": str(libraries),
        "LD_LIBRARY_PATH": str(libraries),
    }
