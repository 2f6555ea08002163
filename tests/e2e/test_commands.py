"""`tandem generate`, `workers`, `trace`, `drain` and `undrain` against a running system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system.command import tandem
from tests.support.system.system import System, running_system


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    """With the mock engine."""
    with running_system(folder, "--engine", "mock", "--model-name", "tiny") as running:
        yield running


def test_generate_says_the_same_streamed_and_whole(system: System) -> None:
    words = ("generate", "Once upon a time", "--max-tokens", "8", "--temperature", "0")
    streamed, whole = tandem(system, *words), tandem(system, *words, "--no-stream")
    assert streamed.returncode == whole.returncode == 0, streamed.stderr
    assert streamed.stdout == whole.stdout
    assert streamed.stdout.strip()


def test_generate_can_chat_by_url(system: System) -> None:
    found = tandem(None, "generate", "hello", "--chat", "--max-tokens", "4", "--url", system.url)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_generate_passes_the_gateways_word_on(system: System) -> None:
    found = tandem(system, "generate", "hello", "--max-tokens", "100000")
    assert found.returncode == 2
    assert "400" in found.stderr
    assert "shorten the prompt" in found.stderr


async def test_trace_shows_a_request_over_all_its_services(system: System) -> None:
    async with system.client() as client:
        body = {"prompt": "Once upon a time", "max_tokens": 4}
        response = await client.post("/v1/completions", json=body, headers={"X-Request-Id": "shown"})
    trace_id = response.headers["traceparent"].split("-")[1]
    for options in (("shown",), (trace_id,), ("shown", "--admin", system.state.admin)):
        shown = tandem(None if "--admin" in options else system, "trace", *options)
        assert shown.returncode == 0, shown.stderr
        first, _, *lines = shown.stdout.splitlines()
        assert first.startswith(f"trace {trace_id} ")
        names = [line.split()[0] for line in lines if "█" in line]
        assert {"POST", "route", "attempt", "prefill", "grant_wait", "chunk", "decode", "receive", "generate"} <= set(
            names
        )
        assert {"gateway", "prefill-0", "decode-0"} <= set(shown.stdout.split())
    found = json.loads(tandem(system, "trace", "shown", "--json").stdout)
    by_id = {span["span_id"]: span for span in found["spans"]}
    assert [span["name"] for span in found["spans"] if span["parent_span_id"] not in by_id] == ["POST /v1/completions"]


def test_trace_of_a_request_that_nobody_knows(system: System) -> None:
    found = tandem(system, "trace", "never-asked")
    assert found.returncode == 2
    assert "there is no trace of never-asked" in found.stderr


def test_generate_without_a_gateway_says_where_it_looked() -> None:
    found = tandem(None, "generate", "hello", TANDEM_CLI_URL="http://127.0.0.1:1")
    assert found.returncode == 2
    assert "http://127.0.0.1:1" in found.stderr


@pytest.mark.parametrize("way", ["state file", "bootstrap", "gateway"])
def test_workers_lists_pages_rooms_and_links(way: str, system: System) -> None:
    options = {
        "state file": (),
        "bootstrap": ("--bootstrap", system.state.bootstrap),
        "gateway": ("--url", system.state.admin),
    }[way]
    found = tandem(system if way == "state file" else None, "workers", "--json", *options)
    assert found.returncode == 0, found.stderr
    workers = {one["info"]["worker"]["worker_id"]: one for one in json.loads(found.stdout)}
    assert sorted(workers) == ["decode-0", "prefill-0"]
    decode = workers["decode-0"]
    assert decode["info"]["models"] == ["tiny"]
    assert decode["status"]["links"] == ["prefill-0=cma"] or decode["status"]["links"] == ["prefill-0=tcp"]
    assert {pool["name"] for pool in decode["status"]["pools"]} >= {"kv", "metadata"}


def test_drain_and_undrain_show_in_the_list(system: System) -> None:
    assert "decode-0: draining" in tandem(system, "drain", "decode-0").stdout
    (line,) = [line for line in tandem(system, "workers").stdout.splitlines() if line.startswith("decode-0")]
    assert " draining " in line
    assert tandem(system, "undrain", "decode-0").returncode == 0
    (line,) = [line for line in tandem(system, "workers").stdout.splitlines() if line.startswith("decode-0")]
    assert " ready " in line


def test_drain_of_an_unknown_worker_fails(system: System) -> None:
    found = tandem(system, "drain", "decode-9")
    assert found.returncode == 2
    assert "decode-9" in found.stderr


def test_workers_without_a_system_says_so() -> None:
    found = tandem(None, "workers")
    assert found.returncode == 2
    assert "tandem up" in found.stderr
