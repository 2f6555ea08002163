"""The compose project of this repository as a test runs it: up, asked, scaled, broken and down."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.settings import environment

ROOT: Final = Path(__file__).resolve().parents[3]
OFFICIAL_PYTHON: Final = "python:3.11-slim"
LOCAL_PYTHON: Final = "tandem-python:local"
BUILD_TIMEOUT_S: Final = 900
UP_TIMEOUT_S: Final = 300
PULL_TIMEOUT_S: Final = 120

_WORKERS: Final = """
import asyncio, json, sys
from tandem.rpc.client import open_channel
from tandem.v1 import admin_pb2, admin_pb2_grpc

async def main(wanted):
    async with asyncio.timeout(60), open_channel("127.0.0.1:50051") as channel:
        ask = admin_pb2_grpc.AdminServiceStub(channel).ListClusterWorkers
        while True:
            workers = (await ask(admin_pb2.ListClusterWorkersRequest(), timeout=5)).workers
            if len(workers) == wanted and all(worker.HasField("status") for worker in workers):
                break
            await asyncio.sleep(0.2)
    print(json.dumps({worker.info.worker.worker_id: {
        "submitted": worker.status.submitted, "links": list(worker.status.links),
    } for worker in workers}))

asyncio.run(main(int(sys.argv[1])))
"""
"""Runs in the gateway's container, as AdminService listens on its loopback only."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What the gateway knows of a worker."""

    submitted: int
    links: tuple[str, ...]
    """`peer=provider` each."""


def run(*command: str, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Runs a command in the repository; returns its output. Fails with what it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(env or environment()),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command[:8])} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python_image() -> str:
    """The image that everything is built on: the official one, or, out of a registry's reach, one made here once."""
    finds = {
        ("image", "inspect", OFFICIAL_PYTHON): OFFICIAL_PYTHON,
        ("pull", "-q", OFFICIAL_PYTHON): OFFICIAL_PYTHON,
        ("image", "inspect", LOCAL_PYTHON): LOCAL_PYTHON,
    }
    for command, image in finds.items():
        try:
            subprocess.run(("docker", *command), capture_output=True, timeout=PULL_TIMEOUT_S, check=True)
        except subprocess.SubprocessError:
            continue
        return image
    run(str(Path(__file__).with_name("base_image.sh")), LOCAL_PYTHON, timeout_s=PULL_TIMEOUT_S)
    return LOCAL_PYTHON


class Stack:
    """One compose project with the profile `mock`, under a name of its own, on any free port."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._env = environment(
            PYTHON_IMAGE=python_image(), IMAGE_TAG="test", GATEWAY_PORT="0", COMPOSE_PROFILES="mock", LOG_LEVEL="INFO"
        )

    def compose(self, *arguments: str, timeout_s: float = 60) -> str:
        """Runs `docker compose`; returns what it printed."""
        return run("docker", "compose", "-p", self.project, *arguments, timeout_s=timeout_s, env=self._env)

    def build(self) -> None:
        """Builds every image."""
        self.compose("build", "--quiet", timeout_s=BUILD_TIMEOUT_S)

    def up(self, prefill: int = 1, decode: int = 1) -> None:
        """Starts what is missing, or stops what is too much, and returns once everything is healthy."""
        scale = ("--scale", f"prefill-mock={prefill}", "--scale", f"decode-mock={decode}")
        self.compose("up", "-d", "--no-build", "--wait", *scale, timeout_s=UP_TIMEOUT_S)

    def down(self) -> None:
        """Stops and removes everything. Idempotent."""
        self.compose("down", "--volumes", "--remove-orphans", timeout_s=120)

    def left_over(self) -> list[str]:
        """Ids of what exists of this project: containers, networks, volumes."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("container", "-aq"), ("network", "-q"), ("volume", "-q"))
        return [
            name
            for kind, options in kinds
            for name in run("docker", kind, "ls", options, "--filter", label, timeout_s=30).split()
        ]

    def client(self) -> httpx.AsyncClient:
        """An HTTP client of the gateway."""
        address = self.compose("port", "gateway", "8000").strip()
        return httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False)

    def containers(self, *services: str) -> list[str]:
        """Ids of the running containers of these services, or of all."""
        return self.compose("ps", "-q", *services).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        (found,) = json.loads(run("docker", "inspect", container, timeout_s=30))
        return dict(found)

    def kill(self, container: str) -> str:
        """Ends a container with SIGKILL, which the engine does not undo; returns its host name."""
        name = str(self.inspect(container)["Config"]["Hostname"])
        run("docker", "kill", container, timeout_s=30)
        return name

    def start(self, container: str) -> None:
        """Starts a container again."""
        run("docker", "start", container, timeout_s=30)

    def workers(self, wanted: int) -> dict[str, Worker]:
        """What the gateway knows of each worker, by name, once it knows of so many."""
        text = self.compose("exec", "-T", "gateway", "python", "-c", _WORKERS, str(wanted), timeout_s=120)
        return {name: Worker(one["submitted"], tuple(one["links"])) for name, one in json.loads(text).items()}
