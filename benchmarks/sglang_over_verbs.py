"""Real SGLang, one prefill and one decode worker, over a chosen provider: what it answers and what it moved.

    python benchmarks/sglang_over_verbs.py --provider tcp --answers tcp.json
    python -m tools.rdma_vm run --memory-mib 12288 --cpus 2 --timeout-s 3000 -- \\
        python benchmarks/sglang_over_verbs.py --provider verbs --compare tcp.json

The second command takes some ten minutes: the guest's processor is emulated. Exit code 0: every answer came
over the provider that was asked for, as many bytes moved as the prompts have, and the answers are those of --compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from tandem.cli.board import State, read_state
from tandem.cli.cluster import Member, members_of_bootstrap
from tandem.rpc.credentials import PLAIN

ROOT: Final = Path(__file__).resolve().parents[1]
MODEL: Final = ROOT / "models" / "tandem-tiny"
LENGTHS: Final = (1, 40, 300)
"""Tokens of the prompts."""
NEW_TOKENS: Final = 16
PATIENT: Final = (
    *("--env", "bootstrap:TANDEM_BOOTSTRAP_LEASE_TTL_MS=60000"),
    *("--env", "TANDEM_RANK_PING_TIMEOUT_MS=60000", "--env", "TANDEM_RANK_DIAL_TIMEOUT_MS=60000"),
)
"""An emulated processor is late with everything."""


async def answers_of(url: str) -> list[list[int]]:
    """Greedy tokens after random prompts, one at a time."""
    dice, found = random.Random(1), []
    async with httpx.AsyncClient(base_url=url, timeout=1_200, trust_env=False) as client:
        for length in LENGTHS:
            began = time.monotonic()
            sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
            prompt = [dice.randrange(3, 1000) for _ in range(length)]
            response = await client.post("/generate", json={"input_ids": prompt, "sampling_params": sampling})
            if response.status_code != httpx.codes.OK:
                raise RuntimeError(response.text)
            found.append(response.json()["output_ids"])
            print(f"prompt of {length} tokens: {found[-1]} in {time.monotonic() - began:.1f} s", flush=True)
    return found


def token_bytes(member: Member) -> int:
    """Bytes of KV per token."""
    layout = member.info.layout
    return sum(sum(pool.item_bytes) for pool in layout.pools if pool.name == "kv") // layout.page_size


async def moved_by(state: State) -> dict[str, dict[str, Any]]:
    """What each worker says of itself."""
    shown = {}
    for member in await members_of_bootstrap(state.bootstrap, PLAIN):
        if (status := member.status) is None:
            raise RuntimeError(f"{member.info.worker.worker_id} does not answer")
        shown[member.info.worker.worker_id] = {
            "links": list(status.links),
            "kv_bytes": status.kv_bytes,
            "metadata_bytes": status.metadata_bytes,
            "chunks": status.kv_chunks,
            "checksum_failures": status.checksum_failures,
            "token_bytes": token_bytes(member),
        }
    return shown


async def measure(options: argparse.Namespace) -> int:
    """Starts the system, asks, and tells; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        files = ("--state-file", f"{folder}/state.json", "--log-dir", f"{folder}/logs")
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tandem.cli", "up", "--model", str(MODEL), "--port", "0", "--quiet", *files),
            *("--provider", options.provider, "--engine", options.engine, "--page-size", "1", *PATIENT),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert process.stdout is not None
            while line := (await process.stdout.readline()).decode():
                print(f"{time.monotonic() - began:7.1f} s  {line}", end="", flush=True)
                if "Tandem is ready" in line:
                    break
            else:
                return 1
            state = read_state(Path(folder) / "state.json")
            answers = await answers_of(state.url)
            moved = await moved_by(state)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
    for name, one in moved.items():
        print(f"{name}: {one}")
    return judge(options, answers, moved)


def judge(options: argparse.Namespace, answers: list[list[int]], moved: dict[str, dict[str, Any]]) -> int:
    """The exit code."""
    if options.answers:
        Path(options.answers).write_text(json.dumps(answers), encoding="ascii")
    wrong = []
    for name, one in moved.items():
        if any(not link.endswith(f"={options.provider}") for link in one["links"]) or not one["links"]:
            wrong.append(f"{name} has the links {one['links']}")
        if one["kv_bytes"] != sum(LENGTHS) * one["token_bytes"]:
            wrong.append(f"{name} moved {one['kv_bytes']} bytes, not {sum(LENGTHS)} x {one['token_bytes']}")
        if one["checksum_failures"]:
            wrong.append(f"{name} saw {one['checksum_failures']} wrong checksums")
    if options.compare and answers != json.loads(Path(options.compare).read_text(encoding="ascii")):
        wrong.append(f"the answers are not those of {options.compare}")
    print("\n".join(wrong) or f"all as it should be over {options.provider}")
    return 1 if wrong else 0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Real SGLang, 1P1D, over a chosen provider.")
    parser.add_argument("--provider", default="verbs", choices=("verbs", "tcp", "cma"))
    parser.add_argument("--engine", default="sglang", choices=("sglang", "mock"), help="the mock to try all this out")
    parser.add_argument("--answers", metavar="FILE", help="write the answers there")
    parser.add_argument("--compare", metavar="FILE", help="answers that these have to be equal to")
    return asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
