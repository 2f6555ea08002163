"""Nothing of a stack stays, whatever happens while it runs or starts."""

from __future__ import annotations

import socket

import pytest

from tests.support.docker.stack import Stack, running

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]


def interrupted(stack: Stack) -> None:
    """Starts a stack and breaks off."""
    with running(stack):
        kinds = {type(one).__name__ for one in stack.left_over()}
        assert kinds == {"Container", "Network", "Volume"}
        raise KeyboardInterrupt


def test_nothing_stays_after_a_failure_while_it_runs(images: None) -> None:
    stack = Stack()
    with pytest.raises(KeyboardInterrupt):
        interrupted(stack)
    assert not stack.left_over()


def test_nothing_stays_of_what_did_not_start(images: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stack = Stack(GATEWAY_PORT=str(taken.getsockname()[1]))
        with pytest.raises(AssertionError, match=r"in use|already allocated"), running(stack):
            pytest.fail("it started without its port")
    assert not stack.left_over()
