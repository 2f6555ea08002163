"""`tandem bench gateway --quick`: every scenario runs and has its figures, however fast anything is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from tests.support.settings import environment

TIMEOUT_S = 300
FIGURES = {
    ("whole p50, added", "default"),
    ("first chunk p99", "quickack"),
    ("requests per CPU-second of the gateway", "default"),
    ("4 streams: tokens per CPU-second of the gateway", "quickack"),
    ("4 streams: CPU per token, all processes", "default"),
    ("4 streams: gap p99, added", "default"),
    ("memory per idle stream", "quickack"),
    ("cancel to prefill stopped p99", "quickack"),
    ("routing by consistent_hash, p99", "no client"),
}


def test_every_scenario_has_its_figures(tmp_path: Path) -> None:
    words = ("bench", "gateway", "--quick", "--peers", "--json", "f.json", "--svg", "f.svg")
    found = subprocess.run(
        [sys.executable, "-m", "tandem.cli", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    document = json.loads((tmp_path / "f.json").read_text())
    values = {(one["figure"], one["mode"]): one["value"] for one in document["figures"] if one["side"] == "tandem"}
    assert values.keys() >= FIGURES
    assert all(math.isfinite(value) for value in values.values())
    assert values["cancels that reached prefill", "quickack"] == 1
    assert values["idle streams held", "quickack"] == 20
    assert values["4 streams: tokens per second", "default"] > 0
    assert "cancel to prefill stopped p99, quickack:" in found.stdout
    assert (tmp_path / "f.svg").read_text().startswith("<svg")
