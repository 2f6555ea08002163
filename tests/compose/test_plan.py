"""The file that `tandem plan` writes, as Compose itself reads it beside docker-compose.yml."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tandem.cli.sizing.advice import Setup, compose_file
from tandem.cli.sizing.candidates import Arrangement, Candidate
from tandem.core.policies import PolicyName
from tests.support.docker.stack import CALL_TIMEOUT_S, ROOT
from tests.support.settings import environment

pytestmark = pytest.mark.docker


def test_every_worker_is_a_service_with_its_own_gpus(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", ".env"):
        shutil.copy(ROOT / name, tmp_path)
    setup = Setup(Candidate(Arrangement(2, 1), PolicyName.ROUND_ROBIN, 64), "Qwen/Qwen3-8B", 2, 128, 4096)
    (tmp_path / "plan.yml").write_text(compose_file(setup))
    done = subprocess.run(
        [
            "docker",
            "compose",
            "-f",
            "docker-compose.yml",
            "-f",
            "plan.yml",
            "--profile",
            "gpu",
            "config",
            "--format",
            "json",
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=CALL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    gpus = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services.items()
        if name.startswith(("prefill", "decode"))
    }
    assert {name: [one["device_ids"] for one in devices] for name, devices in gpus.items()} == {
        "prefill-gpu": [["0", "1"]],
        "prefill-gpu-1": [["2", "3"]],
        "decode-gpu": [["4", "5"]],
    }
    second = services["prefill-gpu-1"]
    assert second["environment"]["TANDEM_SGLANG_PAGE_SIZE"] == "64"
    assert second["environment"]["TANDEM_PREFILL_BOOTSTRAP_ADDRESS"] == "bootstrap:50050"
    assert second["networks"]["cluster"]["aliases"] == ["prefill"]
    assert services["gateway"]["environment"]["TANDEM_GATEWAY_PREFILL_POLICY"] == "round_robin"
