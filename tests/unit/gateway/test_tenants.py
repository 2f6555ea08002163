"""The file of tenants, and what their clients see."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tandem.core.errors import TandemError
from tandem.core.fair_queue import Priority
from tandem.core.refusals import Refused
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.tenants import Tenants, duration, parse
from tandem.gateway.admission.watched_file import CHECK_INTERVAL_S
from tests.support.gateway.doubles import AppLimits, NotingWorkers, finish, http_client, one_each

TEXT = "/v1/completions"
FILE = """
[default]
requests_per_min = 5

[tenants.search]
keys = ["search-prod", "search-dev"]
weight = 3
priority = "high"
tokens_per_min = 200000
max_concurrent = 64
tokens_per_day = 50000000
models = ["tiny"]

[tenants.batch]
weight = 0.5
priority = "low"
"""


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_read() -> None:
    found = parse(FILE)
    search = found.of_key("search-dev")
    assert search is found.of_key("search-prod")
    assert (search.name, search.weight, search.priority, search.max_concurrent) == ("search", 3, Priority.HIGH, 64)
    assert (search.tokens_per_min, search.tokens_per_day, search.models) == (200_000, 50_000_000, {"tiny"})
    assert search.requests_per_min == 0, "the default is of those that are not named"
    assert found.of_key("batch").priority is Priority.LOW
    other = found.of_key("somebody")
    assert (other.name, other.requests_per_min) == ("key:somebody", 5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tenants.a]\nweight = 0", r"tenants\.a\.weight: .*greater than or equal to 0\.001"),
        ("[tenants.a]\nwieght = 1", r"tenants\.a\.wieght: Extra inputs"),
        ("[tenants.a]\npriority = 'urgent'", r"tenants\.a\.priority: .*'high', 'normal' or 'low'"),
        ("[tenants.a]\nrequests_per_min = 'many'", r"tenants\.a\.requests_per_min: .*valid integer"),
        ("[tenants.a]\ntokens_per_min = 0", r"tenants\.a\.tokens_per_min: .*greater than or equal to 1"),
        ("[tenants.a]\nmodels = 'tiny'", r"tenants\.a\.models: .*valid list"),
        ("[tenants.'a b']\nweight = 1", r"tenants\.a b\..*match pattern"),
        ("[default]\nkeys = ['a']", r"default\.keys: Extra inputs"),
        ("[tenants.a]\n[tenants.b]\nkeys = ['a']", r"tenants\.b\.keys: the key a is of tenant a already"),
        ("[[tenants", "it is not TOML"),
    ],
)
def test_a_bad_file_names_the_field(text: str, told: str) -> None:
    with pytest.raises(TandemError, match=told):
        parse(text)


def test_a_change_is_seen_and_keeps_what_was_used_where_limits_stay(tmp_path: Path) -> None:
    file, clock = tmp_path / "tenants.toml", Clock()
    file.write_text("[tenants.a]\nrequests_per_min = 1\n", encoding="utf-8")
    tenants = Tenants(file, clock)
    tenants.count_request(tenants.account_of("a"))
    file.write_text("[tenants.a]\nrequests_per_min = 1\n[tenants.b]\n", encoding="utf-8")
    clock.now += CHECK_INTERVAL_S
    with pytest.raises(Refused):
        tenants.count_request(tenants.account_of("a"))
    file.write_text("[tenants.a]\nrequests_per_min = 20\n[tenants.b]\n", encoding="utf-8")
    clock.now += CHECK_INTERVAL_S
    tenants.count_request(tenants.account_of("a"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (366.5, "6m6.5s")]
)
def test_durations_are_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def limited(tmp_path: Path, text: str) -> AppLimits:
    """An app with the keys `key-1` (one) and `key-2` (two)."""
    file = tmp_path / "tenants.toml"
    file.write_text(text, encoding="utf-8")
    return AppLimits(keys=KeyRing(("one", "two")), tenants=Tenants(file, Clock()))


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_requests_per_minute_are_told_in_headers_and_refused(tmp_path: Path) -> None:
    limits = limited(tmp_path, "[tenants.key-1]\nrequests_per_min = 2\n")
    async with http_client(NotingWorkers(), limits) as client:
        first, second, third = [await client.post(TEXT, json={"prompt": "a"}, headers=by("one")) for _ in range(3)]
        other = await client.post(TEXT, json={"prompt": "a"}, headers=by("two"))
        metrics = await client.get("/metrics", headers=by("one"))
    assert [first.status_code, second.status_code, third.status_code, other.status_code] == [503, 503, 429, 503]
    assert third.json()["error"]["code"] == "rate_limited"
    assert third.headers["retry-after"] == "30"
    assert third.headers["x-ratelimit-limit-requests"] == "2"
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert "x-ratelimit-limit-requests" not in other.headers
    assert 'tandem_gateway_refusals_total{limit="requests"} 1.0' in metrics.text


async def test_tokens_are_charged_as_asked_and_given_back_as_not_used(tmp_path: Path) -> None:
    workers, limits = one_each(), limited(tmp_path, "[tenants.key-1]\ntokens_per_min = 50\n")
    ask = {"prompt": "a", "max_tokens": 30}
    async with http_client(workers, limits) as client:
        first = asyncio.create_task(client.post(TEXT, json=ask, headers=by("one")))
        room = (await workers.decodes[0].next_submit()).room
        refused = await client.post(TEXT, json=ask, headers=by("one"))
        workers.decodes[0].bring(finish(room))
        answer = await first
        again = asyncio.create_task(client.post(TEXT, json=ask, headers=by("one")))
        workers.decodes[0].bring(finish((await workers.decodes[0].next_submit()).room))
        assert (await again).status_code == 200
        too_much = await client.post(TEXT, json={**ask, "max_tokens": 60}, headers=by("one"))
    assert answer.headers["x-ratelimit-remaining-tokens"] == "19"
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert too_much.status_code == 400
    assert "50 per minute" in too_much.json()["error"]["message"]


async def test_models_of_others_are_not_there(tmp_path: Path) -> None:
    limits = limited(tmp_path, "[tenants.key-1]\nmodels = ['large']\n")
    async with http_client(one_each(), limits) as client:
        answer = await client.post(TEXT, json={"prompt": "a"}, headers=by("one"))
    assert answer.status_code == 404
    assert "It may use: large" in answer.json()["error"]["message"]


async def test_a_bad_class_is_refused_by_name() -> None:
    async with http_client(one_each()) as client:
        header = await client.post(TEXT, json={"prompt": "a"}, headers={"X-Request-Priority": "urgent"})
        body = await client.post(TEXT, json={"prompt": "a", "priority": "urgent"})
    assert [header.status_code, body.status_code] == [400, 400]
    assert header.json()["error"]["param"] == "X-Request-Priority"
    assert "'high', 'normal', 'low'" in body.json()["error"]["message"]
