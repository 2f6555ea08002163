"""The verbs devices that the other tests use are there, and carry data from one to the other."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

from tests.support.capabilities import DEVICES

GUEST_DEVICES = ("rxe0", "rxe1")
PINGS = 50
PING_TIMEOUT_S = 60
CALLS = 5
"""ibv_rc_pingpong says where it is just before it listens, so the first call may come too early."""

pytestmark = pytest.mark.rdma


def active_devices() -> list[str]:
    """Names of the devices whose first port is active."""
    return sorted(
        device.name
        for device in DEVICES.iterdir()
        if (device / "ports/1/state").read_text(encoding="ascii").strip() == "4: ACTIVE"
    )


def ipv4_gid_index(device: str) -> int:
    """Index of the device's first RoCE v2 GID that is an IPv4 address."""
    port = DEVICES / device / "ports/1"
    for entry in sorted((port / "gids").iterdir(), key=lambda entry: int(entry.name)):
        if entry.read_text(encoding="ascii").startswith("0000:0000:0000:0000:0000:ffff:"):
            kind = (port / "gid_attrs/types" / entry.name).read_text(encoding="ascii").strip()
            if kind == "RoCE v2":
                return int(entry.name)
    pytest.skip(f"{device} has no RoCE v2 address of IPv4")


def free_port() -> int:
    """A TCP port that nothing has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ping_command(device: str, port: int, *peer: str) -> list[str]:
    """ibv_rc_pingpong on a device; without a peer it waits for one. Lines come out as they are written."""
    ping = ["ibv_rc_pingpong", "-d", device, "-g", str(ipv4_gid_index(device)), "-p", str(port), "-n", str(PINGS)]
    return ["stdbuf", "-oL", *ping, *peer]


def test_the_devices_of_the_guest_are_there() -> None:
    if not all((DEVICES / name).is_dir() for name in GUEST_DEVICES):
        pytest.skip("this machine has devices of its own")
    assert set(GUEST_DEVICES) <= set(active_devices())


def test_a_reliable_connection_carries_messages() -> None:
    if shutil.which("ibv_rc_pingpong") is None:
        pytest.skip("ibv_rc_pingpong is not installed (Debian: ibverbs-utils)")
    devices = active_devices()
    waiter, caller, port = devices[0], devices[1 % len(devices)], free_port()
    with subprocess.Popen(ping_command(waiter, port), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert "local address" in server.stdout.readline()
            for _ in range(CALLS):
                called = subprocess.run(ping_command(caller, port, "127.0.0.1"), timeout=PING_TIMEOUT_S, check=False)
                if called.returncode == 0:
                    break
            assert called.returncode == 0
            assert server.wait(PING_TIMEOUT_S) == 0
            assert f"{PINGS} iters" in server.stdout.read()
        finally:
            server.kill()
