"""Writes requirements/NAME.txt from requirements/NAME.in: each name and all that it needs, as installed right now.

    python -m tools.lock              # every *.in
    python -m tools.lock base dev     # only these

Upgrade in the virtual environment first, run the tests, then lock. Everything is pinned, so `make setup` installs with
`--no-deps`; only torch may bring more, because its index build needs CUDA libraries where its CPU build needs none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
NO_DEPS = "[no-deps]"
FIRST = ("torch",)
"""Names that lead a lock, in this order."""
LEFT_OUT = ("cuda-", "nvidia-")
"""What a CUDA build of torch brings along."""


def names_in(text: str) -> dict[str, bool]:
    """The names of an .in file, and whether what they need is to be locked as well."""
    names: dict[str, bool] = {}
    for line in text.splitlines():
        name, _, comment = line.partition("#")
        if name.strip():
            names[canonicalize_name(name.strip())] = NO_DEPS not in comment
    return names


def needed_by(name: str, extras: Iterable[str]) -> list[Requirement]:
    """The requirements of an installed distribution that hold in this environment with these extras."""
    wanted = [Requirement(text) for text in metadata.distribution(name).requires or ()]
    contexts = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in wanted if r.marker is None or any(r.marker.evaluate(context) for context in contexts)]


def closure(names: dict[str, bool]) -> dict[str, str]:
    """Name to version, of the names and of all that they need."""
    pins: dict[str, str] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in pins or name.startswith(LEFT_OUT):
            continue
        pins[name] = metadata.version(name).partition("+")[0]
        if names.get(name, True):
            waiting += needed_by(name, requirement.extras)
    return pins


def lock(source: Path) -> None:
    """Writes the lock of one .in file."""
    pins = closure(names_in(source.read_text()))
    order = sorted(pins, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    head = f"# Written by tools/lock.py from {source.name}; edit that and run `make lock`.\n"
    source.with_suffix(".txt").write_text(head + "".join(f"{name}=={pins[name]}\n" for name in order))
    print(f"{source.name}: {len(pins)} pins")


def main() -> None:
    """Writes the locks named on the command line, or all."""
    wanted = sys.argv[1:] or sorted(path.stem for path in REQUIREMENTS.glob("*.in"))
    for stem in wanted:
        lock(REQUIREMENTS / f"{stem}.in")


if __name__ == "__main__":
    main()
