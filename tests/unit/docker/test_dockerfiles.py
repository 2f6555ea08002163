"""Each Dockerfile installs what its service's distributions ask for: not less, and nothing heavy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WORKERS = ("prefill", "decode", "unified")
SERVICES = ("bootstrap", "gateway", *WORKERS, "cli")
OPTIONAL = {worker: {"tokenizers"} for worker in WORKERS}
"""What a service imports only with certain settings, so that its distributions do not ask for it."""


def path_of(service: str) -> Path:
    """Where its Dockerfile is. That of the workers is one for all roles."""
    if service in WORKERS:
        return ROOT / "services" / "worker.Dockerfile"
    return ROOT / (service if service == "cli" else f"services/{service}") / "Dockerfile"


def dockerfile(service: str) -> str:
    """Its text as it is for a service, with continued lines joined."""
    text = path_of(service).read_text(encoding="utf-8").replace("\\\n", " ")
    return re.sub(r"\$(ROLE\b|\{ROLE[^}]*\})", service, text) if service in WORKERS else text


def distributions(service: str) -> list[str]:
    """Folders of the distributions that are installed."""
    (command,) = re.findall(r"--target /opt/tandem(.*)", dockerfile(service))
    return [name.removeprefix("./") for name in command.split()]


def wanted(service: str) -> set[str]:
    """Names that those distributions depend on."""
    found = set()
    for folder in distributions(service):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        found |= {re.split(r"[<>=!~ ]", name)[0] for name in project["dependencies"]}
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_it_installs_what_its_distributions_ask_for(service: str) -> None:
    (command,) = re.findall(r"install -qq -c requirements/base\.txt  +([^&\n]*)", dockerfile(service))
    third_party = {name for name in wanted(service) if not name.startswith("tandem-")}
    assert set(command.split()) == third_party | OPTIONAL.get(service, set())


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_every_distribution_that_they_ask_for(service: str) -> None:
    held = {f"tandem-{Path(folder).name}" for folder in distributions(service)}
    assert {name for name in wanted(service) if name.startswith("tandem-")} <= held


@pytest.mark.parametrize("service", ["bootstrap", "gateway", "cli"])
def test_light_services_know_no_engine(service: str) -> None:
    assert not re.findall("torch|sglang", dockerfile(service))


@pytest.mark.parametrize("service", SERVICES)
def test_it_does_not_run_as_root(service: str) -> None:
    text = dockerfile(service)
    assert set(re.findall(r"^USER (.*)$", text, re.MULTILINE)) == {"10001:10001"}
    assert text.count("USER 10001") == text.count(">>/etc/passwd"), "an image without its user"


@pytest.mark.parametrize("role", WORKERS)
def test_every_target_of_a_worker_starts_its_role_with_its_engine(role: str) -> None:
    targets = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", dockerfile(role), re.MULTILINE | re.DOTALL))
    engines = {"mock": "mock", "sglang-cpu": "sglang", "sglang-cuda": "sglang"}
    for target, engine in engines.items():
        assert f"ENV ROLE={role} " in targets[target]
        assert f'"exec python -m tandem.{role} ' in targets[target]
        said = re.findall(rf"TANDEM_{role.upper()}_ENGINE=(\S+)", targets[target])
        assert (said or ["sglang"]) == [engine]
