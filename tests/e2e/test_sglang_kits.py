"""SGLang's own server tests, from the installed package, against a whole system with SGLang on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.system.system import running_system
from tools import sglang_kits

NAME = "models/tandem-tiny"
KITS = ("BasicAPIContract.test_openai", "JSONMode", "EBNFConstrained.test_ebnf_generate_date")
"""Those whose outcome does not depend on what the tiny model knows; see docs/conformance.md."""


@pytest.mark.sglang
@pytest.mark.long
@pytest.mark.timeout(900)
def test_kits_that_pass_go_on_passing(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    only = [part for one in KITS for part in ("--only", one)]
    with running_system(tmp_path, "--model-name", NAME) as system:
        sglang_kits.main(["--url", system.url, "--model", NAME, "--json", str(found), *only])
    outcomes = {name: outcome for name, (outcome, _) in json.loads(found.read_text()).items()}
    assert len(outcomes) >= len(KITS)
    assert set(outcomes.values()) == {"pass"}, outcomes
