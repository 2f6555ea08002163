"""Two ranks a side that change places; what SGLang refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sglang import installed
from tests.support.sglang.asking import greedy, prompt, whole
from tests.support.sglang.pair import TINY, Pair

installed.require()

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


async def test_both_ranks_of_each_side_change_places(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    await pair.start(tp_size=2, chunked_prefill_tokens=64, max_total_tokens=8_192, role_switch=True)
    asked = [prompt(length, 700 + length) for length in (1, 40, 200)]
    expected = greedy(TINY, asked, 12)
    for turn in range(3):
        rooms = [pair.submit(ids, max_new_tokens=12) for ids in asked]
        assert [(await pair.answer(room)).token_ids for room in rooms] == expected, f"turn {turn}"
        await whole(pair, "kv", "metadata")
        await pair.swap()
    assert await pair.stop() == [0, 0]


async def test_an_engine_that_was_not_started_for_it_stays_as_it_is(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    await pair.start(max_total_tokens=8_192)
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED: SGLang does not become a prefill server"):
        await pair.decode.switch("prefill")
    await pair.prefill.stop()
