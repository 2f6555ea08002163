"""`tandem bench kv` over verbs: beside perftest, on the same devices."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys

import pytest

pytestmark = [pytest.mark.rdma, pytest.mark.cc, pytest.mark.long]

PAGE = 64 << 10


@pytest.mark.skipif(not shutil.which("ib_write_bw"), reason="perftest is not installed (Debian: apt install perftest)")
async def test_verbs_is_measured_beside_perftest() -> None:
    small = ("--total-mib", "4", "--repeats", "1", "--page-bytes", str(PAGE), "--writes", "16", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.rdma.bench.kv", "--providers", "verbs", *small), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    rows = json.loads(output)
    assert [(row["name"], row.get("checksum")) for row in rows] == [
        *(("ib_write_bw", False), ("verbs", False), ("verbs", True)),
        *(("ib_write_lat", None), ("waiting", None), ("verbs", None)),
    ]
    assert all(row["gb_per_s"] > 0 for row in rows[:3])
    assert rows[1]["ratio"] == pytest.approx(rows[1]["gb_per_s"] / rows[0]["gb_per_s"])
    assert all(row["us"] > 0 and row["page_bytes"] == PAGE for row in rows[3:])
