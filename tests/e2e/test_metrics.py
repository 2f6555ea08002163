"""What running services tell Prometheus is what docs/metrics.md says, and all that alerts and panels ask for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tandem.cli.cluster import members_of_gateway
from tandem.core.planner.advice import KEEP_QUIET
from tandem.rpc.credentials import PLAIN
from tandem.rpc.run import ANNOUNCEMENT
from tests.support.metrics import files, promql, scrapes
from tests.support.settings import environment
from tests.support.system.asking import body, generate, prompt_of
from tests.support.system.system import System, running_system

CHUNK_TOKENS = 32
SHORT, LONG = prompt_of(CHUNK_TOKENS, seed=1), prompt_of(2 * CHUNK_TOKENS, seed=2)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker. Of what arrives in more than one chunk, decode finds a byte flipped."""
    options = ("--engine", "mock", "--provider", "tcp", "--engine-arg", f"chunk_tokens={CHUNK_TOKENS}")
    flips = [f"decode-0:TANDEM_RANK_FAULT_FLIP_{name}" for name in ("CHUNK=1", "TIMES=1000000")]
    faults = [word for flip in flips for word in ("--env", flip)]
    with running_system(tmp_path_factory.mktemp("metrics"), *options, *faults) as running:
        yield running


async def use(system: System) -> None:
    """Answers, an error of the client's, and an answer that fails each time it is tried."""
    async with system.client() as client:
        for seed in range(3):
            await generate(client, prompt_of(CHUNK_TOKENS, seed), 4)
        assert (await client.post("/generate", json=body(SHORT, -1))).status_code == 400
        failed = await client.post("/generate", json=body(LONG, 4))
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "checksum_mismatch")
    await members_of_gateway(system.state.admin, PLAIN)
    await system.wait_idle()


async def told_by_planner(system: System) -> str:
    """What a planner tells once it has looked."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.cli", "planner", "--admin", system.state.admin),
        env=environment(TANDEM_PLANNER_LOG_LEVEL="DEBUG"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    address, looked = "", False
    async with asyncio.timeout(120):
        while not (address and looked):
            line = (await process.stdout.readline()).decode()
            assert line, "it ended"
            address = line.split()[-1] if line.startswith(f"{ANNOUNCEMENT} metrics") else address
            looked = looked or KEEP_QUIET.reason in line
        async with httpx.AsyncClient(trust_env=False) as client:
            told = (await client.get(f"http://{address}/metrics")).text
        process.terminate()
        await process.stdout.read()
        assert await process.wait() == 0
    return told


@pytest.fixture(scope="module")
def texts(system: System, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each process tells after it was used, and a unified worker of a system of its own: beside the pair it would
    answer what the pair fails."""

    async def asked(alone: System) -> dict[str, str]:
        await use(system)
        planner = await told_by_planner(system)
        async with alone.client() as client:
            await generate(client, SHORT, 4)
        await alone.wait_idle()
        told = await scrapes.scrape(alone)
        return {"unified-0": told["unified-0"], "planner": planner, **await scrapes.scrape(system)}

    options = ("--engine", "mock", "--ratio", "0:0", "--unified", "1")
    with running_system(tmp_path_factory.mktemp("alone"), *options) as alone:
        return asyncio.run(asked(alone))


def test_the_document_holds_every_series_and_no_other(texts: dict[str, str]) -> None:
    there, told = scrapes.scraped(texts), scrapes.documented()
    assert len(told) > 100, "the test sees no document"
    assert sorted(there - told) == [], "not documented"
    assert sorted(told - there) == [], "documented, and not there"


def test_alerts_and_panels_ask_for_series_that_are_there(texts: dict[str, str]) -> None:
    there = scrapes.series(texts)
    wrong = {
        f"{where}: {complaint}"
        for where, text, _ in files.expressions()
        for complaint in promql.complaints(promql.read(text), there)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_what_happened_is_counted_where_it_happened(texts: dict[str, str]) -> None:
    def value(process: str, series: str) -> float:
        (line,) = [line for line in texts[process].splitlines() if line.startswith(f"{series} ")]
        return float(line.rpartition(" ")[2])

    attempts = 3
    assert value("gateway", 'tandem_gateway_requests_total{code="502",endpoint="/generate"}') == 1
    assert value("gateway", 'tandem_gateway_retries_total{reason="CHECKSUM_MISMATCH"}') == attempts - 1
    assert value("gateway", "tandem_gateway_queue_seconds_count") == 3 + attempts
    assert value("gateway", 'tandem_gateway_workers{role="decode",state="ready"}') == 1
    assert value("bootstrap", 'tandem_bootstrap_workers{role="prefill",state="ready"}') == 1
    for process, peer in (("prefill-0", "decode-0"), ("decode-0", "prefill-0")):
        assert value(process, 'tandem_rooms_failed_total{reason="CHECKSUM_MISMATCH"}') == attempts
        assert value(process, "tandem_rooms_succeeded_total") == 3
        assert value(process, "tandem_rooms_overdue") == 0
        assert value(process, f'tandem_kv_chunks_total{{peer="{peer}",provider="tcp"}}') == 3 + 2 * attempts
    assert value("decode-0", "tandem_kv_checksum_failures_total") == attempts
    assert value("decode-0", 'tandem_kv_grants_revoked_total{provider="tcp"}') == attempts
    sent = value("prefill-0", 'tandem_kv_bytes_total{peer="decode-0",provider="tcp"}')
    assert sent == value("decode-0", 'tandem_kv_bytes_total{peer="prefill-0",provider="tcp"}') > 0


async def test_counters_go_on_from_scrape_to_scrape(system: System) -> None:
    def succeeded(texts: dict[str, str]) -> float:
        name = "tandem_rooms_succeeded_total "
        (line,) = [line for line in texts["decode-0"].splitlines() if line.startswith(name)]
        return float(line.removeprefix(name))

    before = succeeded(await scrapes.scrape(system))
    async with system.client() as client:
        await generate(client, SHORT, 2)
    assert succeeded(await scrapes.scrape(system)) == before + 1


async def test_no_metrics_are_served_where_none_are_wanted(tmp_path: Path) -> None:
    with running_system(tmp_path, "--engine", "mock", "--env", "TANDEM_DECODE_METRICS_ADDRESS=") as system:
        rows = {row.name: row.metrics for row in system.state.processes}
        assert rows["decode-0"] == ""
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{rows['prefill-0']}/metrics")).status_code == 200
