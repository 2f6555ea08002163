"""Generates libs/protos/src/tandem/v1 from protos/, or checks that it is what would be generated.

python -m tools.gen_protos            # make gen
python -m tools.gen_protos --check    # part of make check
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.proto_set import ROOT, generate_stubs

STUBS = ROOT / "libs" / "protos" / "src"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of every generated file below a folder."""
    found = [path for pattern in GENERATED for path in folder.rglob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def stale(fresh: Path) -> list[str]:
    """Names of the committed stubs that differ from the fresh ones, are missing, or are left over."""
    new, old = contents(fresh), contents(STUBS)
    return sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))


def main() -> int:
    """Generates, or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if anything would change")
    check = parser.parse_args().check
    with TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate_stubs(fresh)
        changed = stale(fresh)
        if check and changed:
            print("Stubs are not what protos/ gives; run `make gen`:", *changed, sep="\n  ")
            return 1
        for name in [] if check else changed:
            if (fresh / name).exists():
                shutil.copyfile(fresh / name, STUBS / name)
            else:
                (STUBS / name).unlink()
        print("stubs are up to date" if not changed else f"{len(changed)} stubs written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
