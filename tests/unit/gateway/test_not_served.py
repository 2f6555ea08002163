"""What cannot be served with prefill and decode apart is told as such, not as a path that nobody knows."""

from __future__ import annotations

import httpx
import openai
import pytest

from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.api.not_served import NOT_SERVED
from tandem.gateway.web.paths import ENDPOINTS
from tests.support.gateway.doubles import AppLimits, http_client, one_each


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("path", NOT_SERVED)
async def test_each_says_why(path: str, method: str) -> None:
    async with http_client(one_each()) as client:
        response = await client.request(method, path, content=b"not even json")
        metrics = (await client.get("/metrics")).text
    assert response.status_code == 501
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "not_supported")
    assert error["message"] == f"{path} is not offered here. {NOT_SERVED[path]}"
    assert f'tandem_gateway_errors_total{{endpoint="{path}",reason="NOT_SUPPORTED"}} 1' in metrics


def test_nothing_is_both_served_and_not() -> None:
    assert not ENDPOINTS.keys() & NOT_SERVED.keys()


async def test_a_key_is_needed_to_be_told() -> None:
    async with http_client(one_each(), AppLimits(keys=KeyRing(("right",)))) as client:
        assert (await client.post("/v1/embeddings", json={})).status_code == 401


async def test_the_official_client_is_told_once_and_does_not_ask_again() -> None:
    async with http_client(one_each()) as http:
        asked = []

        async def note(request: httpx.Request) -> None:
            asked.append(request.url.path)

        http.event_hooks = {"request": [note]}
        client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", max_retries=2, http_client=http)
        with pytest.raises(openai.InternalServerError, match="no worker returns a vector") as caught:
            await client.embeddings.create(model="tiny", input="hello")
    assert (caught.value.status_code, caught.value.code) == (501, "not_supported")
    assert asked == ["/v1/embeddings"]
