"""The compose project of this repository as a test runs it: up, asked, scaled, broken and down.

Compose is its command; what is done to single containers goes through the engine's API.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import docker
import httpx
from docker.models.containers import Container
from docker.models.networks import Network
from docker.models.volumes import Volume

from tests.support.settings import environment

ROOT: Final = Path(__file__).resolve().parents[3]
OFFICIAL_PYTHON: Final = "python:3.11-slim"
LOCAL_PYTHON: Final = "tandem-python:local"
TAG: Final = "test"
BUILD_TIMEOUT_S: Final = 900
UP_TIMEOUT_S: Final = 300
PULL_TIMEOUT_S: Final = 120
RESTART_TIMEOUT_S: Final = 40
CALL_TIMEOUT_S: Final = 120
COMMAND_TIMEOUT_S: Final = 90
HTTP_PORT: Final = "8000/tcp"


def run(*command: str, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Runs a command in the repository; returns its output. Fails with what it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(env or environment()),
        stdin=subprocess.DEVNULL,
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
        ("image", "inspect", LOCAL_PYTHON): LOCAL_PYTHON,
        ("pull", "-q", OFFICIAL_PYTHON): OFFICIAL_PYTHON,
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
    """One compose project under a name of its own, whose gateways are published on any free port."""

    def __init__(self, profile: str = "mock", **env: str) -> None:
        """profile: that of the workers; several have commas between them. env: variables of docker-compose.yml."""
        self.project = f"tandem-test-{secrets.token_hex(4)}"
        first = profile.partition(",")[0]
        self.suffix = "" if first == "sglang-cpu" else f"-{first}"
        """What the names of the workers' services end in."""
        self.docker = docker.from_env(timeout=CALL_TIMEOUT_S)
        fixed = {"IMAGE_TAG": TAG, "GATEWAY_PORT": "0", "COMPOSE_PROFILES": profile}
        self.env = environment(**{**fixed, **env, "PYTHON_IMAGE": env.get("PYTHON_IMAGE") or python_image()})
        """Of `docker compose`."""

    def compose(self, *arguments: str, timeout_s: float = 60) -> str:
        """Runs `docker compose`; returns what it printed."""
        return run("docker", "compose", "-p", self.project, *arguments, timeout_s=timeout_s, env=self.env)

    def command(self, *words: str) -> str:
        """Runs the command `tandem` in a container of its own, with a gateway to ask; returns what it printed."""
        run_cli = ("run", "--rm", "-T", "cli")
        return self.compose(*run_cli, *words, "--admin", "gateway:50051", timeout_s=COMMAND_TIMEOUT_S)

    def build(self) -> None:
        """Builds every image of the profile."""
        self.compose("build", "--quiet", timeout_s=BUILD_TIMEOUT_S)

    def up(self, prefill: int = 1, decode: int = 1, gateway: int = 1) -> None:
        """Starts what is missing, or stops what is too much, and returns once everything is healthy."""
        pair = {f"prefill{self.suffix}": prefill, f"decode{self.suffix}": decode}
        counts = {**({} if self.suffix.startswith("-unified") else pair), "gateway": gateway}
        scale = [part for name, count in counts.items() for part in ("--scale", f"{name}={count}")]
        self.compose("up", "-d", "--no-build", "--wait", *scale, timeout_s=UP_TIMEOUT_S)

    @contextlib.contextmanager
    def beside(self, service: str) -> Iterator[None]:
        """A service of another profile runs, healthy, beside what runs already."""
        try:
            self.compose("up", "-d", "--no-build", "--wait", service, timeout_s=UP_TIMEOUT_S)
            yield
        finally:
            self.compose("rm", "--stop", "--force", service, timeout_s=CALL_TIMEOUT_S)

    def down(self) -> None:
        """Stops and removes everything. Idempotent."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10", timeout_s=CALL_TIMEOUT_S)

    def left_over(self) -> list[Container | Network | Volume]:
        """What exists of this project."""
        wanted = {"label": f"com.docker.compose.project={self.project}"}
        return [
            *self.docker.containers.list(all=True, filters=wanted),
            *self.docker.networks.list(filters=wanted),
            *self.docker.volumes.list(filters=wanted),
        ]

    def containers(self, *services: str) -> list[Container]:
        """The running containers of these services, or of all; those of a service in order of their numbers."""
        label = f"com.docker.compose.project={self.project}"
        filters = {"label": label, "status": ["running", "paused"]}
        found: list[Container] = []
        for service in services or ("",):
            labels = [label, f"com.docker.compose.service={service}"] if service else [label]
            found += self.docker.containers.list(filters={**filters, "label": labels}, ignore_removed=True)
        return sorted(found, key=lambda one: (service_of(one), int(one.labels["com.docker.compose.container-number"])))

    def gateways(self) -> list[str]:
        """Addresses at which the gateways are published, as of now: a restart gives another port."""
        bindings = [one.attrs["NetworkSettings"]["Ports"].get(HTTP_PORT) for one in self.containers("gateway")]
        return [f"http://{one[0]['HostIp']}:{one[0]['HostPort']}" for one in bindings if one]

    def client(self, key: str = "") -> httpx.AsyncClient:
        """An HTTP client of the first gateway."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=self.gateways()[0], headers=headers, timeout=60, trust_env=False)

    def address(self, service: str) -> str:
        """The IP address of a service's first container in the network of the cluster."""
        (found, *_) = self.containers(service)
        return str(found.attrs["NetworkSettings"]["Networks"][f"{self.project}_cluster"]["IPAddress"])

    def certificates(self, member: str, folder: Path) -> Path:
        """Copies what `certs` made for a member into a folder; returns that folder."""
        (maker,) = [
            one
            for one in self.docker.containers.list(
                all=True, filters={"label": [f"com.docker.compose.project={self.project}"]}
            )
            if service_of(one) == "certs"
        ]
        parts, _ = maker.get_archive(f"/certs/{member}")
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
            archive.extractall(folder, filter="data")
        return folder / member

    def wait_healthy(self, container: Container, since: float, timeout_s: int = 90) -> None:
        """Waits for the engine's word, since a moment in seconds since 1970, that a container is healthy."""
        events = self.docker.events(
            decode=True,
            since=int(since),
            until=int(time.time()) + timeout_s,
            filters={"container": container.id, "event": "health_status"},
        )
        with contextlib.closing(events):
            for event in events:
                if event["Action"] == "health_status: healthy" and event["timeNano"] / 1e9 >= since:
                    return
        raise AssertionError(f"{container.name} was not healthy in {timeout_s} s: {container.logs(tail=20).decode()}")

    def restart(self, container: Container) -> None:
        """Asks a container to end, starts it again, and returns once it is healthy."""
        since = time.time()
        container.restart(timeout=RESTART_TIMEOUT_S)
        self.wait_healthy(container, since)


def service_of(container: Container) -> str:
    """The service that a container is one of."""
    return str(container.labels["com.docker.compose.service"])


@contextlib.contextmanager
def running(stack: Stack, prefill: int = 1, decode: int = 1, gateway: int = 1) -> Iterator[Stack]:
    """A stack that is healthy. Whatever happens, nothing of it stays."""
    try:
        stack.up(prefill, decode, gateway)
        yield stack
    finally:
        stack.down()
        left = stack.left_over()
        assert not left, [one.name for one in left]


@contextlib.contextmanager
def disconnected(stack: Stack, container: Container) -> Iterator[None]:
    """Takes a container out of the network of the cluster, and puts it back under its names and its address."""
    network = stack.docker.networks.get(f"{stack.project}_cluster")
    before = container.attrs["NetworkSettings"]["Networks"][network.name]
    network.disconnect(container)
    try:
        yield
    finally:
        network.connect(container, aliases=before["Aliases"])
        container.reload()
        after = container.attrs["NetworkSettings"]["Networks"][network.name]
        assert after["IPAddress"] == before["IPAddress"], "it has another address, where nobody looks for it"


@contextlib.contextmanager
def paused(container: Container) -> Iterator[None]:
    """Freezes every process of a container."""
    container.pause()
    try:
        yield
    finally:
        container.unpause()
