"""What doctor reads of this machine, and of a made-up one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tandem.cli.doctor import probe
from tandem.cli.doctor.command import document
from tandem.cli.doctor.facts import Facts, RdmaPort
from tandem.cli.doctor.rules import Level, examine

GID = "fe80:0000:0000:0000:0000:0000:0000:0001"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_ports_of_rdma_devices(tmp_path: Path) -> None:
    card = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    write(card / "state", "4: ACTIVE")
    write(card / "link_layer", "Ethernet")
    write(card / "gids/0", GID)
    write(card / "gids/1", "0000:0000:0000:0000:0000:0000:0000:0000")
    write(card / "gid_attrs/ndevs/0", "eth7")
    write(tmp_path / "sys/class/net/eth7/mtu", "9000")
    other = tmp_path / "sys/class/infiniband/mlx5_1/ports/2"
    write(other / "state", "1: DOWN")
    write(other / "link_layer", "InfiniBand")
    assert probe.rdma_ports(tmp_path) == (
        RdmaPort("mlx5_0/1", "ACTIVE", ethernet=True, gids=1, mtu_bytes=9000),
        RdmaPort("mlx5_1/2", "DOWN", ethernet=False, gids=0, mtu_bytes=None),
    )


def test_a_machine_without_anything(tmp_path: Path) -> None:
    facts = probe.gather(0, tmp_path)
    assert facts.rdma_ports == ()
    assert facts.memory_available_bytes is None
    assert facts.shm_free_bytes is None
    assert facts.gpus.driver == ""


def test_memory_and_driver() -> None:
    assert probe.available_bytes("MemTotal:  9 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB") == 2 << 20
    assert probe.available_bytes("MemTotal: 9 kB") is None


@pytest.fixture(scope="module")
def here() -> Facts:
    return probe.gather(0)


def test_this_machine(here: Facts) -> None:
    assert here.python >= (3, 11)
    assert here.port_error == ""
    assert here.memory_available_bytes is not None
    assert here.memory_available_bytes > 0
    assert here.clock.resolution_s > 0
    assert here.files_soft > 0


def test_a_port_that_somebody_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        facts = probe.gather(taken.getsockname()[1])
    (finding,) = (finding for finding in examine(facts) if finding.name == "port")
    assert finding.level is Level.FAILED


def test_json(here: Facts) -> None:
    told = json.loads(document(examine(here)))
    assert told["schema"] == "tandem.doctor/1"
    assert {row["level"] for row in told["findings"]} <= {level.value for level in Level}
