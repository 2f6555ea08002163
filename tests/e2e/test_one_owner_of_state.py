"""Only the core's machine owns a room's state: one move less in its table, and no engine answers any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.system.asking import body
from tests.support.system.system import ROOT, running_system

BROKEN = ROOT / "tests" / "support" / "broken_table"
TIMEOUT_MS = 4_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["mock", pytest.param("sglang", marks=[pytest.mark.sglang, pytest.mark.slow])])
async def test_a_missing_move_stops_every_engine(engine: str, tmp_path: Path) -> None:
    options = ("--engine", engine, "--env", f"gateway:TANDEM_GATEWAY_REQUEST_TIMEOUT_MS={TIMEOUT_MS}")
    with running_system(tmp_path, *options, "--env", f"decode-0:PYTHONPATH={BROKEN}") as system:
        async with system.client() as client:
            response = await client.post("/generate", json=body([5, 6, 7], 4))
        assert response.status_code == 504, response.text
        assert (await system.wait_idle())["decode-0"].rooms_succeeded == 0, "the room failed, and holds no page"
