"""Prompts that do not fit one message, over a real Session."""

from __future__ import annotations

import pytest

from tandem.core.version import Feature, Protocol
from tests.support.gateway import fake_worker
from tests.support.gateway.cluster import cluster

TOKENS = 560_000
PROMPT = [128 + place * place % 300 for place in range(TOKENS)]
REQUEST = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 2}}


@pytest.fixture(autouse=True)
def _long_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_worker, "CONTEXT_TOKENS", 2 * TOKENS)


async def test_a_long_prompt_comes_whole_to_both_legs() -> None:
    async with cluster() as now:
        response = await now.http.post("/generate", json=REQUEST)
        assert response.status_code == 200, response.text
        for worker in (*now.prefills, *now.decodes):
            (submit,) = worker.submits
            assert list(submit.input_ids) == PROMPT
            assert worker.parts == 2


async def test_a_worker_of_an_older_minor_is_not_sent_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_worker, "CURRENT", Protocol(1, 0, Feature.CHUNK_CHECKSUM))
    async with cluster() as now:
        response = await now.http.post("/generate", json=REQUEST)
        assert response.status_code == 501
        assert "takes one message" in response.text
        assert not any(worker.parts for worker in (*now.prefills, *now.decodes))
        short = await now.http.post("/generate", json={**REQUEST, "input_ids": PROMPT[:9]})
        assert short.status_code == 200, "what fits goes as before"
