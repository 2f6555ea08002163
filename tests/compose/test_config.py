"""docker-compose.yml in every profile, those that can't be started here too."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.docker.stack import Stack, run

pytestmark = pytest.mark.docker

OURS = {
    "sglang-cpu": {"prefill", "decode"},
    "mock": {"prefill-mock", "decode-mock"},
    "gpu": {"prefill-gpu", "decode-gpu"},
    "rdma": {"prefill-rdma", "decode-rdma"},
    "unified": {"unified"},
    "unified-mock": {"unified-mock"},
}
ALWAYS = {"certs", "bootstrap", "gateway"}
WATCHING = {"otel-collector", "jaeger", "prometheus", "grafana"}
TLS = {f"TANDEM_TLS_{name}_FILE" for name in ("CERT", "KEY", "CA")}


def services(*profiles: str, **env: str) -> dict[str, Any]:
    """What Compose makes of the file, by service."""
    stack = Stack(",".join(profiles), PYTHON_IMAGE="python:3.11-slim", **env)
    found: dict[str, Any] = json.loads(stack.compose("config", "--format", "json"))["services"]
    return found


@pytest.mark.parametrize("profile", OURS)
def test_a_profile_has_its_workers_and_what_they_need(profile: str) -> None:
    found = services(profile)
    assert set(found) == ALWAYS | OURS[profile]
    for name in set(found) - {"certs"}:
        environment = found[name]["environment"]
        assert set(environment) >= TLS, name
        assert "TANDEM_TLS_ALLOW_INSECURE" not in environment


@pytest.mark.parametrize("profile", OURS)
def test_a_service_sees_its_own_key_only(profile: str) -> None:
    for name, service in services(profile).items():
        volumes = {one["source"] for one in service.get("volumes", ()) if one["source"].startswith("certs-")}
        assert name == "certs" or volumes == {f"certs-{name.partition('-')[0]}"}, name


def test_a_bare_checkout_starts_the_tiny_model_on_the_cpu() -> None:
    text = run("git", "show", "HEAD:.env", timeout_s=20)
    assert "COMPOSE_PROFILES=sglang-cpu" in text.splitlines()
    assert services("sglang-cpu")["decode"]["environment"]["TANDEM_DECODE_MODEL_PATH"] == "/models/tandem-tiny"


def test_a_unified_worker_stands_beside_a_pair() -> None:
    found = services("mock", "unified-mock")
    assert set(found) == ALWAYS | OURS["mock"] | OURS["unified-mock"]
    assert found["unified-mock"]["environment"]["TANDEM_UNIFIED_BOOTSTRAP_ADDRESS"] == "bootstrap:50050"
    assert found["unified-mock"]["build"]["target"] == "mock"


def test_each_role_has_a_gpu_of_its_own() -> None:
    found = services("gpu", MODEL_PATH="Qwen/Qwen3-0.6B")
    devices = {}
    for name in OURS["gpu"]:
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        devices[name] = device["device_ids"]
        assert found[name]["environment"]["HF_HOME"] == "/hf"
        assert found[name]["build"]["target"] == "sglang-cuda"
    assert devices == {"prefill-gpu": ["0"], "decode-gpu": ["1"]}
    assert found["gateway"]["environment"]["TANDEM_GATEWAY_MODEL_PATH"] == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(("limit", "wanted"), [({}, -1), ({"MEMLOCK_LIMIT": "8388608"}, 8388608)])
def test_rdma_has_its_devices_and_may_lock_memory(limit: dict[str, str], wanted: int) -> None:
    for name in OURS["rdma"]:
        worker = services("rdma", **limit)[name]
        assert worker["cap_add"] == ["IPC_LOCK"]
        assert worker["ulimits"]["memlock"] == wanted
        assert "/dev/infiniband" in json.dumps(worker["devices"])


def test_what_watches_is_pinned_and_published_on_loopback_only() -> None:
    found = services("mock", "observability")
    assert set(found) >= WATCHING
    for name in WATCHING:
        assert re.search(r":v?\d+\.\d+\.\d+$", found[name]["image"]), name
        assert {port["host_ip"] for port in found[name].get("ports", ())} <= {"127.0.0.1"}
