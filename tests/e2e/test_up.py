"""`tandem up` itself: what it says when something is wrong, what it restarts, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tandem.cli.board import Board, Stage
from tandem.cli.child import Child
from tandem.cli.plan import Kind, ProcessPlan
from tandem.cli.supervisor import ProcessFailed, RestartPolicy, Supervisor
from tandem.core.errors import TandemError
from tandem.rpc.backoff import BackoffPolicy
from tests.support.settings import environment
from tests.support.system.system import STOP_TIMEOUT_S, launch, running_system

FAST = RestartPolicy(max_restarts=2, backoff=BackoffPolicy(initial_ms=1, max_ms=2))


def ends_with(folder: Path, *options: str, port: int = 0) -> tuple[int, str]:
    """Exit code and output of a `tandem up` that ends by itself."""
    system = launch(folder, "--engine", "mock", *options, port=port)
    code = system.process.wait(STOP_TIMEOUT_S)
    with pytest.raises(AssertionError, match="did not say"):
        system.wait_line("\0", 5)
    return code, "\n".join(system.output)


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = ends_with(tmp_path, port=port)
    assert code == 2
    assert f"port {port} of 127.0.0.1 can't be used" in output
    assert "--port" in output
    assert not (tmp_path / "state.json").exists()


def test_a_service_that_cannot_start_ends_the_system_with_its_reason(tmp_path: Path) -> None:
    code, output = ends_with(tmp_path, "--engine-arg", "pages=-1")
    assert code == 1
    assert "TANDEM_MOCK_PAGES" in output
    assert "-0 ended with exit code 2" in output
    assert not (tmp_path / "state.json").exists()


@pytest.mark.parametrize("options", [("--ratio", "0:1"), ("--env", "nobody:X=1"), ("--engine", "vllm")])
def test_bad_options_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    code, output = ends_with(tmp_path, *options)
    assert code == 2, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_process(number: signal.Signals, tmp_path: Path) -> None:
    with running_system(tmp_path, "--engine", "mock") as system:
        pids = [psutil.Process(pid) for pid in system.processes()]
        assert len(pids) == 5
        assert system.stop(number) == 0
        _, alive = psutil.wait_procs(pids, timeout=0)
        assert not alive
        assert not (tmp_path / "state.json").exists()


def test_kill_9_of_the_command_leaves_no_process(tmp_path: Path) -> None:
    with running_system(tmp_path, "--engine", "mock") as system:
        pids = [psutil.Process(pid) for pid in system.processes()]
        system.process.kill()
        _, alive = psutil.wait_procs(pids, timeout=10)
        assert not alive


def test_a_killed_gateway_comes_back_at_its_ports(tmp_path: Path) -> None:
    with running_system(tmp_path, "--engine", "mock") as system:
        before = system.state
        system.kill("gateway")
        system.wait_line("gateway: restarting", 20)
        system.wait_line("gateway: ready", 60)
        after = system.state
        assert (after.url, after.admin) == (before.url, before.admin)
        assert after.row("gateway").pid != before.row("gateway").pid


# ---------------------------------------------------------------- one process


def supervisor(script: str, board: Board) -> Supervisor:
    """Of a small program, as the worker decode-0."""
    command = [sys.executable, "-c", script]
    plan = ProcessPlan("decode-0", Kind.DECODE, {})
    return Supervisor(plan, board, lambda *_: None, drain_ms=1000, policy=FAST, command=command)


@pytest.fixture
def board() -> Board:
    """With the row of decode-0 only, and no file."""
    return Board([ProcessPlan("decode-0", Kind.DECODE, {}), ProcessPlan("gateway", Kind.GATEWAY, {})], "tiny", None)


async def test_a_worker_that_dies_again_and_again_is_given_up(board: Board) -> None:
    one = supervisor("print('listening decode-0 127.0.0.1:1', flush=True); print('oh no'); raise SystemExit(7)", board)
    await one.start(environment())
    with pytest.raises(ProcessFailed, match=r"exit code 7 after 2 restarts(.|\n)*oh no"):
        await one.keep()
    row = board.row("decode-0")
    assert (row.stage, row.restarts, row.pid) == (Stage.FAILED, 2, 0)


async def test_a_worker_that_never_listens_is_not_started_again(board: Board) -> None:
    with pytest.raises(ProcessFailed, match="exit code 3"):
        await supervisor("raise SystemExit(3)", board).start(environment())


SLOT = (
    "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print(os.environ['NAME'], 'drains', flush=True),"
    " sys.exit(0))); sys.exit(3) if os.environ['NAME'] == 'broken' else 0;"
    " print('listening', os.environ['NAME'], '127.0.0.1:1', flush=True); signal.pause()"
)
"""A worker under the name in its environment."""


async def test_another_worker_takes_the_place_of_one_that_has_drained(board: Board) -> None:
    lines: list[tuple[str, str]] = []
    command = [sys.executable, "-c", SLOT]
    plan = ProcessPlan("decode-0", Kind.DECODE, {"NAME": "decode-0"})
    one = Supervisor(plan, board, lambda *line: lines.append(line), drain_ms=60_000, policy=FAST, command=command)
    await one.start(environment())
    keeping = asyncio.create_task(one.keep())
    before = board.row("decode-0").pid
    async with asyncio.timeout(60):
        await one.become(ProcessPlan("prefill-3", Kind.PREFILL, {"NAME": "prefill-3"}))
    assert lines == [("decode-0", "decode-0 drains")]
    row = board.row("prefill-3")
    assert (row.kind, row.stage, row.restarts) == ("prefill", Stage.REGISTERED, 0)
    assert row.pid not in (0, before)
    assert [each.name for each in board.rows] == ["prefill-3", "gateway"]
    with pytest.raises(ProcessFailed, match="exit code 3"):
        async with asyncio.timeout(60):
            await one.become(ProcessPlan("decode-7", Kind.DECODE, {"NAME": "broken"}))
    with pytest.raises(ProcessFailed, match="exit code 3 after 2 restarts"):
        async with asyncio.timeout(60):
            await keeping
    with pytest.raises(TandemError, match="does not serve now"):
        await one.become(plan)


async def test_a_worker_that_ignores_sigterm_is_killed_with_its_children(board: Board) -> None:
    script = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        "print(child.pid, flush=True); print('listening decode-0 127.0.0.1:1', flush=True); child.wait()"
    )
    lines: list[str] = []
    child = await Child.start([sys.executable, "-c", script], environment(), lines.append)
    assert await child.announced("decode-0") == {"decode-0": "127.0.0.1:1"}
    grandchild = psutil.Process(int(lines[0]))
    assert await child.stop(200) == -signal.SIGKILL
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [grandchild], 5)
    assert gone


async def test_children_of_a_worker_that_dies_are_killed_although_they_hold_its_output(board: Board) -> None:
    script = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        "print(child.pid, flush=True)"
    )
    lines: list[str] = []
    child = await Child.start([sys.executable, "-c", script], environment(), lines.append)
    assert await asyncio.wait_for(child.wait(), 10) == 0
    with contextlib.suppress(psutil.NoSuchProcess):
        await asyncio.to_thread(psutil.Process(int(lines[0])).wait, 5)


async def test_long_lines_and_bad_bytes_do_not_stop_the_reading(board: Board) -> None:
    script = r"import sys; sys.stdout.buffer.write(b'x' * 200_000 + b'\n\xff\xfe\n'); print('last', end='')"
    lines: list[str] = []
    child = await Child.start([sys.executable, "-c", script], environment(), lines.append)
    assert await child.wait() == 0
    assert "".join(lines[:-2]) == "x" * 200_000
    assert lines[-2:] == ["\ufffd\ufffd", "last"]


def test_a_leashed_process_whose_parent_is_gone_does_not_start() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tandem.cli.leash", "1", sys.executable, "-c", "print('started')"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
