"""SGLang's server tests of knowledge and grammars, with a worker that knows what is asked: docs/conformance.md."""

from __future__ import annotations

import pytest

from tests.support.sglang.knowing_cases import outcomes

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.long]

CASES = (
    "BasicDecodeCorrectness.",
    "BasicSchedulerStress.",
    "MatchedStop.",
    "JSONConstrained.test_json_generate",
    "JSONConstrained.test_json_openai",
    "JSONConstrained.test_mix_json_and_other",
    "RegexConstrained.test_regex_generate_complex_json",
    "EBNFConstrained.test_ebnf_generate_complex_json",
)
REFUSED = {"MatchedStop.test_finish_stop_regex_str"}
"""It needs `stop_regex`."""


async def test_what_the_tiny_model_fails_passes_with_a_worker_that_knows() -> None:
    found = await outcomes("llama3", *(word for one in CASES for word in ("--only", one)))
    assert len(found.cases) > len(CASES)
    assert {name: why for name, why in found.cases.items() if why[0] != "pass"}.keys() == REFUSED, found.cases
    assert not found.disallowed
