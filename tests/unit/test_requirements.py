"""The locks pin everything, agree with each other, and hold what the distributions ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("base", "sglang-cpu", "dev")
PIN = re.compile(r"([a-z0-9.-]+)==([0-9][0-9a-z.]*)")


def pins(lock: str) -> dict[str, Version]:
    """Name to version; anything but a pin fails."""
    found = {}
    for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines():
        if not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match is not None, f"{lock}.txt: {line!r} is no exact pin"
            found[match[1]] = Version(match[2])
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_an_exact_pin_and_every_name_is_there(lock: str) -> None:
    wanted = (ROOT / "requirements" / f"{lock}.in").read_text().splitlines()
    names = {canonicalize_name(line.partition("#")[0].strip()) for line in wanted if not line.startswith("#")}
    assert names <= pins(lock).keys()


def test_locks_agree() -> None:
    base, more = pins("base"), pins("sglang-cpu") | pins("dev")
    assert {name: more[name] for name in base.keys() & more.keys()} == {
        name: base[name] for name in base.keys() & more.keys()
    }
    engine, dev = pins("sglang-cpu"), pins("dev")
    assert all(engine[name] == dev[name] for name in engine.keys() & dev.keys())


def test_base_holds_what_the_distributions_need() -> None:
    base = pins("base")
    for project in [*sorted(ROOT.glob("*/*/pyproject.toml")), ROOT / "cli" / "pyproject.toml"]:
        for text in tomllib.loads(project.read_text())["project"]["dependencies"]:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if not name.startswith("tandem-"):
                assert name in base, f"{project.parent.name} needs {text}"
                assert base[name] in requirement.specifier, (
                    f"{project.parent.name} needs {text}, locked is {base[name]}"
                )
