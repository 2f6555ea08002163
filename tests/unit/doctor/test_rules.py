"""What doctor makes of each fact."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tandem.cli.doctor.facts import GIB, MIB, Clock, Docker, Facts, Gpus, RdmaPort
from tandem.cli.doctor.rules import RULES, SGLANG, Finding, Level, examine

ROOT = Path(__file__).resolve().parents[3]
CARD = RdmaPort("mlx5_0/1", "ACTIVE", ethernet=True, gids=4, mtu_bytes=9000)
HEALTHY = Facts(
    python=(3, 11, 2),
    torch="2.9.0",
    sglang=SGLANG,
    sglang_for_cpu=False,
    gpus=Gpus(8, "550.54.15"),
    rdma_ports=(CARD,),
    pyverbs="",
    memlock_bytes=None,
    cma="",
    shm_free_bytes=8 * GIB,
    port=8000,
    port_error="",
    clock=Clock(1e-9, True),
    memory_available_bytes=64 * GIB,
    cores=16,
    files_soft=65_536,
    files_hard=1 << 20,
    docker=Docker(True, "27.0"),
)


def found(name: str, **facts: Any) -> Finding:
    return {finding.name: finding for finding in examine(replace(HEALTHY, **facts))}[name]


def test_a_healthy_machine_has_nothing_to_do() -> None:
    findings = examine(HEALTHY)
    assert {finding.level for finding in findings} == {Level.OK}
    assert {finding.do for finding in findings} == {""}
    assert len({finding.name for finding in findings}) == len(findings) == len(RULES)


CASES: list[tuple[str, dict[str, Any], Level, str]] = [
    ("python", {"python": (3, 10, 9)}, Level.FAILED, "3.10.9"),
    ("python", {"python": (3, 14, 0)}, Level.OK, "3.14.0"),
    ("torch", {"torch": None}, Level.FAILED, "SGLang can't run"),
    ("sglang", {"sglang": None}, Level.FAILED, "mock"),
    ("sglang", {"sglang": "0.5.22"}, Level.WARNING, "0.5.22"),
    ("sglang", {"sglang_for_cpu": True}, Level.OK, "CPU"),
    ("cuda", {"gpus": Gpus(0, ""), "sglang_for_cpu": True}, Level.OK, "CPU"),
    ("cuda", {"gpus": Gpus(0, "")}, Level.WARNING, "installed for GPUs"),
    ("cuda", {"gpus": Gpus(0, ""), "sglang": None}, Level.OK, "CPU"),
    ("cuda", {"gpus": Gpus(8, "")}, Level.WARNING, "driver"),
    ("cuda", {"sglang_for_cpu": True}, Level.WARNING, "not used"),
    ("rdma devices", {"rdma_ports": ()}, Level.OK, "none"),
    ("rdma devices", {"rdma_ports": (replace(CARD, state="DOWN"),)}, Level.WARNING, "DOWN"),
    ("rdma devices", {"rdma_ports": (replace(CARD, state="DOWN"), CARD)}, Level.OK, "DOWN"),
    ("rdma devices", {"rdma_ports": (replace(CARD, gids=0),)}, Level.WARNING, "GID"),
    ("rdma devices", {"rdma_ports": (replace(CARD, mtu_bytes=1500),)}, Level.WARNING, "smaller"),
    ("rdma devices", {"rdma_ports": (replace(CARD, ethernet=False, mtu_bytes=None),)}, Level.OK, "InfiniBand"),
    ("pyverbs", {"pyverbs": "not installed"}, Level.WARNING, "not installed"),
    ("pyverbs", {"pyverbs": "not installed", "rdma_ports": ()}, Level.OK, "no device"),
    ("locked memory", {"memlock_bytes": 8 * MIB}, Level.WARNING, "8 MiB"),
    ("locked memory", {"memlock_bytes": 8 * MIB, "rdma_ports": ()}, Level.OK, "8 MiB"),
    ("locked memory", {"memlock_bytes": 64 * GIB}, Level.OK, "65,536 MiB"),
    ("cma", {"cma": "kernel.yama.ptrace_scope is 2"}, Level.WARNING, "ptrace_scope is 2"),
    ("/dev/shm", {"shm_free_bytes": None}, Level.WARNING, "no /dev/shm"),
    ("/dev/shm", {"shm_free_bytes": MIB}, Level.WARNING, "1 MiB"),
    ("port", {"port_error": "Address already in use"}, Level.FAILED, "8000"),
    ("clock", {"clock": Clock(1e-3, True)}, Level.WARNING, "1000 us"),
    ("clock", {"clock": Clock(1e-9, False)}, Level.WARNING, "nobody"),
    ("clock", {"clock": Clock(1e-9, None)}, Level.OK, "can't be found out"),
    ("memory", {"memory_available_bytes": GIB}, Level.FAILED, "1.0 GiB"),
    ("memory", {"memory_available_bytes": 3 * GIB}, Level.WARNING, "small models"),
    ("memory", {"memory_available_bytes": None}, Level.WARNING, "can't be found out"),
    ("open files", {"files_soft": 128}, Level.FAILED, "128"),
    ("open files", {"files_soft": 1024}, Level.WARNING, "1,024"),
    ("docker", {"docker": Docker(False, "")}, Level.OK, "not there"),
    ("docker", {"docker": Docker(True, "")}, Level.WARNING, "does not answer"),
]


@pytest.mark.parametrize(("name", "facts", "level", "says"), CASES)
def test_each_rule(name: str, facts: dict[str, Any], level: Level, says: str) -> None:
    finding = found(name, **facts)
    assert finding.level is level
    assert says in finding.means
    assert bool(finding.do) is (level is not Level.OK), "something to do exactly where something is wrong"


def test_every_rule_is_tried() -> None:
    assert {finding.name for finding in examine(HEALTHY)} == {name for name, *_ in CASES}


def test_the_version_of_sglang_is_the_pinned_one() -> None:
    pinned = re.search(r"sglang==([\d.]+)", (ROOT / "libs/engine/pyproject.toml").read_text())
    assert pinned is not None
    assert pinned[1] == SGLANG
