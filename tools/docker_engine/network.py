"""What an engine does to the machine's network, seen before it starts and undone after its end."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tools.docker_engine.programs import output

_TABLES: Final = ("iptables", "ip6tables")
_LINKS: Final = Path("/sys/class/net")
_FORWARD: Final = {"iptables": Path("/proc/sys/net/ipv4/ip_forward")}
_OURS: Final = re.compile(r"DOCKER|\bdocker0\b|\bbr-[0-9a-f]{12}\b")
"""Chains, and rules that name them or one of an engine's bridges."""
_BRIDGE: Final = re.compile(r"docker0|br-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Network:
    """How it was."""

    links: frozenset[str]
    forwards: bool
    """Whether IPv4 packets were forwarded."""
    policies: dict[str, str]
    """Per program, what its chain FORWARD did with packets that no rule takes: ACCEPT or DROP."""

    @classmethod
    def now(cls) -> Self:
        """How it is."""
        policies = {program: policy(_saved(program)) for program in _programs()}
        return cls(_links(), _FORWARD["iptables"].read_text(encoding="ascii").strip() == "1", policies)

    def restore(self) -> None:
        """Removes the bridges and rules of an engine that has ended. Raises DockerEngineError."""
        for link in sorted(_links() - self.links):
            if _BRIDGE.fullmatch(link):
                output("ip", "link", "delete", link)
        for program in _programs():
            saved = _saved(program)
            if cleaned := without_engine(saved, self.policies.get(program, "ACCEPT")):
                output(f"{program}-restore", given=cleaned)
        if not self.forwards:
            _FORWARD["iptables"].write_text("0", encoding="ascii")


def policy(saved: str) -> str:
    """What the chain FORWARD does by default, of what iptables-save printed."""
    found = re.search(r"^:FORWARD (\w+)", saved, re.MULTILINE)
    return found[1] if found else "ACCEPT"


def without_engine(saved: str, forward: str) -> str:
    """What iptables-restore is to read to undo an engine, of what iptables-save printed; empty if there is nothing.

    forward: the policy of the chain FORWARD. Everybody else's rules stay, in their order.
    """
    kept = [line for line in saved.splitlines() if line.startswith("#") or not _OURS.search(line)]
    if len(kept) == len(saved.splitlines()):
        return ""
    table = ""
    for index, line in enumerate(kept):
        if line.startswith("*"):
            table = line
        if table == "*filter" and line.startswith(":FORWARD "):
            kept[index] = re.sub(r"^:FORWARD \w+", f":FORWARD {forward}", line)
    return "\n".join(kept) + "\n"


def _links() -> frozenset[str]:
    return frozenset(path.name for path in _LINKS.iterdir())


def _programs() -> list[str]:
    return [name for name in _TABLES if shutil.which(f"{name}-save")]


def _saved(program: str) -> str:
    return output(f"{program}-save")
