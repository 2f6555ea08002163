"""Installs the engine, its command, Compose and buildx from Debian's packages."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from tools.docker_engine.programs import DockerEngineError, output, step

RELEASE: Final = "trixie"
"""Debian 13: the first with Compose 2 and buildx, whose packages suit Debian 12 as well."""
PACKAGES: Final = ("docker.io", "docker-cli", "containerd", "docker-compose", "docker-buildx")
_HELPERS: Final = ("iptables", "iproute2")
_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PARTS: Final = {
    "docker is not installed": ("docker", "--version"),
    "dockerd is not installed": ("dockerd", "--version"),
    "docker has no compose": ("docker", "compose", "version"),
    "docker has no buildx": ("docker", "buildx", "version"),
}


def lacking() -> list[str]:
    """What of an engine is not installed."""
    found = []
    for reason, command in _PARTS.items():
        try:
            output(*command, timeout_s=20)
        except DockerEngineError:
            found.append(reason)
    return found


def why_not() -> str:
    """What keeps this machine from installing an engine; empty if nothing does."""
    if os.geteuid() != 0:
        return "only root can install and start one"
    if missing := [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]:
        return f"it is installed from Debian's packages, and this machine has no {', '.join(missing)}"
    return "" if _KEYS.is_file() else f"there are no keys of Debian's packages ({_KEYS})"


def install() -> None:
    """Installs what is lacking. Raises DockerEngineError."""
    if not lacking():
        return
    if reason := why_not():
        raise DockerEngineError(f"{', '.join(lacking())}, and {reason}")
    with tempfile.TemporaryDirectory(prefix="tandem-docker-apt-") as name:
        folder = Path(name)
        with step("download Docker's packages"):
            packages = _download(folder)
        with step("install them"):
            output("apt-get", "-qq", "update")
            options = ("-qq", "-y", "--no-install-recommends")
            output(*("apt-get", *options, "install", *map(str, packages), *_HELPERS), DEBIAN_FRONTEND="noninteractive")
    if still := lacking():
        raise DockerEngineError(f"after the installation: {', '.join(still)}")


def mirror(targets: str) -> str:
    """The mirror of Debian's main archive among apt's `URI component` lines. Raises DockerEngineError if none is."""
    for line in targets.splitlines():
        uri, _, component = line.partition(" ")
        if component == "main" and re.search(r"/debian/?$", uri):
            return uri
    raise DockerEngineError("apt knows no mirror of Debian's main archive")


def _download(folder: Path) -> list[Path]:
    """Fetches the packages with lists of their own, so that the machine's own sources stay as they are."""
    uri = mirror(output("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"))
    for part in ("state/lists/partial", "cache/archives/partial", "parts", "debs"):
        (folder / part).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={_KEYS}] {uri} {RELEASE} main\n", encoding="utf-8")
    config = folder / "apt.conf"
    config.write_text(
        "".join(
            f'{name} "{value}";\n'
            for name, value in {
                "Dir::State": folder / "state",
                "Dir::State::status": "/var/lib/dpkg/status",
                "Dir::Cache": folder / "cache",
                "Dir::Etc::sourcelist": folder / "sources.list",
                "Dir::Etc::sourceparts": folder / "parts",
                "Dir::Etc::preferencesparts": folder / "parts",
                "APT::Sandbox::User": "root",
                "Acquire::Languages": "none",
                "Acquire::Retries": "3",
            }.items()
        ),
        encoding="utf-8",
    )
    output("apt-get", "-qq", "update", APT_CONFIG=str(config))
    wanted = [f"{name}/{RELEASE}" for name in PACKAGES]
    output("apt-get", "-qq", "download", *wanted, cwd=folder / "debs", APT_CONFIG=str(config))
    return sorted((folder / "debs").glob("*.deb"))
