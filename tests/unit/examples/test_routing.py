"""The demo of policies: it shows what each promises, answers keys, and leaves the terminal as it was."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from types import ModuleType
from typing import Any

import pytest

from tests.support.example import EXAMPLES, load

EXAMPLE = EXAMPLES / "routing.py"
WORKERS, LOAD, SEED = 4, 1.2, 3


@pytest.fixture(scope="module")
def routing() -> ModuleType:
    return load(EXAMPLE)


def played(routing: ModuleType, policy: str, load: float = LOAD, *, slow: bool = False) -> Any:
    """A cluster after two minutes, and all that came."""
    cluster = routing.Cluster(WORKERS, routing.PolicyName(policy), load, SEED, seen=None)
    if slow:
        assert routing.press(cluster, "s")
    for _ in range(1200):
        cluster.step()
    cluster.finish()
    return cluster


def test_policies_that_know_the_cache_find_more_there(routing: ModuleType) -> None:
    spread, hashed, aware = (played(routing, name) for name in ("least_load", "consistent_hash", "cache_aware"))
    assert min(aware.held_share, hashed.held_share) > 1.5 * spread.held_share
    assert max(aware.wait_s(0.9), hashed.wait_s(0.9)) < spread.wait_s(0.9)


def test_policies_that_know_the_load_avoid_a_slow_worker(routing: ModuleType) -> None:
    blind, seeing = (played(routing, name, 0.8, slow=True) for name in ("round_robin", "least_load"))
    assert seeing.wait_s(0.9) < blind.wait_s(0.9) / 2


def test_the_same_chats_come_to_each_policy(routing: ModuleType) -> None:
    one, other = played(routing, "random"), played(routing, "cache_aware")
    assert one._turns == other._turns


def test_keys_change_what_runs(routing: ModuleType) -> None:
    cluster = routing.Cluster(WORKERS, routing.PolicyName.RANDOM, LOAD, SEED)
    assert routing.press(cluster, "7")
    assert routing.press(cluster, "+")
    assert routing.press(cluster, "?")
    assert (cluster.policy, round(cluster.load, 1)) == (routing.PolicyName.CACHE_AWARE, 1.3)
    assert not routing.press(cluster, "q")


def read_until(terminal: int, end: bytes) -> None:
    """Takes what is shown there. Fails if nothing comes for a minute."""
    shown = b""
    while end not in shown:
        assert select.select([terminal], [], [], 60)[0], shown[-2000:]
        shown += os.read(terminal, 4096)


def test_it_runs_in_a_terminal_until_q() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    before = termios.tcgetattr(theirs)
    words = ["env", "TERM=xterm", "PYTHONUNBUFFERED=1", sys.executable, str(EXAMPLE)]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs) as running:
        read_until(ours, b"round_robin   load")
        os.write(ours, b"2q")
        read_until(ours, b"\x1b[?1049l")
        assert running.wait(60) == 0
    assert termios.tcgetattr(theirs) == before
    for end in (ours, theirs):
        os.close(end)


def test_it_compares_them_without_a_terminal() -> None:
    words = [sys.executable, str(EXAMPLE), "--compare", "--steps", "50"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
    for policy in ("random", "least_load", "cache_aware"):
        assert policy in ended.stdout
