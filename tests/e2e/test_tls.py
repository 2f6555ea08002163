"""A whole system whose services speak mTLS, with a gateway of two processes whose HTTP port speaks TLS: it answers, and
the command `tandem` needs a certificate of it."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tandem.cli import certs
from tests.support.settings import environment
from tests.support.system.asking import generate_all, metric, prompt_of
from tests.support.system.command import tandem
from tests.support.system.mock_oracle import tiny_oracle
from tests.support.system.system import System, running_system

NEW_TOKENS = 12
WAIT_S = 60


def variables(folder: Path, name: str) -> Mapping[str, str]:
    """What the environment of a member's process holds."""
    files = {"CERT": "cert.pem", "KEY": "key.pem", "CA": "ca.pem"}
    return {f"TANDEM_TLS_{kind}_FILE": str(folder / name / file) for kind, file in files.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificates are."""
    made = tmp_path_factory.mktemp("certs")
    certs.make(made, [], 30)
    return made


@pytest.fixture(scope="module")
def system(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers. Every process shows the certificate of a worker, as `tandem up` has one environment for all."""
    options = ("--engine", "mock", "--provider", "tcp", "--gateway-processes", "2")
    files = {"CERT": folder / "gateway" / "cert.pem", "KEY": folder / "gateway" / "key.pem"}
    http = {f"TANDEM_GATEWAY_HTTP_{kind}_FILE": str(path) for kind, path in files.items()}
    env = {**variables(folder, "prefill"), **http}
    with running_system(tmp_path_factory.mktemp("system"), *options, env=env) as running:
        yield running


def client(system: System, folder: Path) -> httpx.AsyncClient:
    """One that trusts the gateway's certificate, with connections of its own."""
    trusted = ssl.create_default_context(cafile=folder / "client" / "ca.pem")
    return httpx.AsyncClient(base_url=system.url, verify=trusted, timeout=WAIT_S, trust_env=False)


async def test_it_answers_and_kv_links_are_up(system: System, folder: Path) -> None:
    prompts = [prompt_of(40, seed) for seed in range(8)]
    async with client(system, folder) as one:
        answers = await generate_all(one, prompts, NEW_TOKENS, at_once=4)
    oracle = tiny_oracle()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == oracle.predict(prompt, NEW_TOKENS).tokens


async def test_every_process_speaks_tls_only(system: System, folder: Path) -> None:
    assert system.url.startswith("https://")
    text = 'tandem_gateway_requests_total{{code="200",endpoint="/v1/models",gateway_process="{}"}}'
    async with asyncio.timeout(WAIT_S), client(system, folder) as asking:
        while not all([await metric(asking, text.format(process)) for process in (0, 1)]):
            async with client(system, folder) as one:
                assert (await one.get("/v1/models")).status_code == 200
    for _ in range(16):
        async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(system.url.replace("https://", "http://") + "/health")


def test_commands_that_speak_http_believe_an_authority_that_is_named(
    system: System, folder: Path, tmp_path: Path
) -> None:
    ca = str(folder / "client" / "ca.pem")
    asked = ("generate", "hello", "--max-tokens", "2")
    assert tandem(system, *asked, "--ca", ca).returncode == 0
    refused = tandem(system, *asked)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert "--ca (TANDEM_CLI_CA_FILE) names the PEM file" in refused.stderr
    few = ("--requests", "2", "--rate", "inf", "--warm-up", "1", "--prompt-tokens", "8", "--new-tokens", "2", "--json")
    done = tandem(system, "bench", "serve", *few, TANDEM_CLI_CA_FILE=ca)
    assert json.loads(done.stdout)["repeats"][0]["summary"]["answered"] == 2, done.stderr
    # Too few sizes to calibrate by, which it says once it has its answers, if no one of them came in one piece.
    few = ("--prompts", "8", "--contexts", "8", "--batches", "1", "--burst", "0")
    calibrate = ("calibrate", str(tmp_path / "costs.json"), *few)
    assert "CERTIFICATE_VERIFY_FAILED" in tandem(system, *calibrate).stderr
    done = tandem(system, *calibrate, "--ca", ca)
    assert done.returncode == 2
    assert "piece" in done.stderr or "at least three lengths of prompts" in done.stderr


def workers(system: System, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`tandem workers` on the gateway's AdminService."""
    command = (sys.executable, "-m", "tandem.cli", "workers", "--json", "--admin", system.state.admin)
    return subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_needs_a_certificate(system: System, folder: Path, tmp_path: Path) -> None:
    done = workers(system, variables(folder, "client"))
    assert {member["status"]["links"][0].partition("=")[2] for member in json.loads(done.stdout)} == {"tcp"}
    certs.make(tmp_path, [], 30)
    for env in (variables(tmp_path, "client"), {}):
        refused = workers(system, env)
        assert refused.returncode == 2
        assert "does not answer" in refused.stderr
