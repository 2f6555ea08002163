"""The dashboard's page in a real browser: against a gateway in this process, and against events that a test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tandem.core.errors import ErrorReason
from tandem.gateway.dashboard.ring import BUCKET_S, BUCKETS
from tandem.gateway.web.dashboard_endpoints import EVENTS, PAGE
from tests.support.browser import PHONE, browser, expect, opened
from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import MODEL, fail_with

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]

KEY = "a-key"


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    async with browser() as started:
        yield started


def snapshot(**changes: Any) -> dict[str, Any]:
    """A quiet cluster of nobody."""
    names = [f"{name}_per_s" for name in ("requests", "errors", "tokens")]
    names += [f"{what}_{share}_ms" for what in ("ttft", "itl") for share in ("p50", "p95")]
    seen: dict[str, Any] = {
        "time_ms": 1_700_000_000_000,
        "gateway": {
            "missing": "",
            "bootstrap": True,
            "uptime_s": 60,
            "sequences": 0,
            "max_sequences": 8,
            "models": ["tiny"],
        },
        "workers": [],
        "links": [],
        "rooms": {"waiting": 0, "prefill": 0, "transfer": 0, "decode": 0, "oldest": []},
        "series": {"bucket_s": BUCKET_S, **{name: [None] * BUCKETS for name in names}},
        "errors": [],
        "traces": [],
    }
    return seen | changes


def event(seen: dict[str, Any]) -> bytes:
    """A snapshot as it travels."""
    return b"event: snapshot\ndata: " + orjson.dumps(seen) + b"\n\n"


async def play(page: Page, url: str, first: bytes) -> Callable[[bytes], None]:
    """Opens the page, whose streams are all this one, until what is returned is given another."""
    now = [first]

    async def answer(route: Route) -> None:
        await route.fulfill(body=now[-1], content_type="text/event-stream")

    await page.route(f"**{EVENTS}", answer)
    await page.goto(url + PAGE)
    return now.append


async def test_it_asks_for_the_key_and_keeps_it_in_this_tab(chromium: Browser) -> None:
    async with cluster(api_keys=(KEY,)) as now, opened(chromium, f"{now.http.base_url}{PAGE}") as seen:
        await expect(seen.page.locator("#key")).to_be_visible()
        await expect(seen.page.locator("#board")).to_be_hidden()
        await seen.page.fill("#key-text", "another")
        await seen.page.click("#key button")
        await expect(seen.page.locator("#key-wrong")).to_contain_text("does not know")
        await seen.page.fill("#key-text", KEY)
        await seen.page.click("#key button")
        await expect(seen.page.locator("#workers tbody tr")).to_have_count(2)
        await expect(seen.page.locator("#key")).to_be_hidden()
        assert await seen.page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert await seen.page.evaluate("localStorage.length + document.cookie.length") == 0
        await seen.page.reload()
        await expect(seen.page.locator("#workers tbody tr")).to_have_count(2)


async def test_what_a_client_sends_is_shown_as_text_and_nothing_else(chromium: Browser) -> None:
    hostile = "<img/src=x/onerror=document.title='gone'>"
    async with cluster(decode=[fail_with(ErrorReason.ENGINE_FAILED)]) as now:
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
        await now.http.post("/v1/completions", json=body, headers={"X-Request-Id": hostile})
        async with opened(chromium, f"{now.http.base_url}{PAGE}") as seen:
            await expect(seen.page.locator("#errors code")).to_have_text(hostile)
            assert await seen.page.locator("#errors img").count() == 0
            assert await seen.page.title() == "Tandem"
            assert not seen.complaints


async def test_it_says_why_nobody_can_look(chromium: Browser) -> None:
    async with cluster(dashboard_viewers=1) as now, opened(chromium, f"{now.http.base_url}{PAGE}") as first:
        await expect(first.page.locator("#live.live")).to_be_visible()
        async with opened(chromium, f"{now.http.base_url}{PAGE}") as second:
            await expect(second.page.locator("#live.stale")).to_contain_text("the most that may")


def span(name: str, service: str, offset_ms: float, duration_ms: float, parent: int | None, **more: Any) -> Any:
    """A span that went well."""
    told = {"name": name, "service": service, "offset_ms": offset_ms, "duration_ms": duration_ms, "parent": parent}
    return told | {"status": "ok", "facts": "", "attributes": {}} | more


TRACE = {
    "request_id": "abc",
    "duration_ms": 200.0,
    "spans": [
        span("request", "gateway", 0, 200, None),
        span("prefill", "prefill-0", 50, 100, 0, facts="in 7  out 1", attributes={"tokens": 7}),
        span("chunk 0", "prefill-0", 100, 40, 1, status="CHECKSUM_MISMATCH", facts="CHECKSUM_MISMATCH  #0"),
    ],
}


async def test_a_trace_is_a_waterfall(chromium: Browser) -> None:
    async with cluster() as now, opened(chromium) as seen:
        await play(seen.page, str(now.http.base_url), event(snapshot(traces=[TRACE, TRACE | {"request_id": "def"}])))
        first = seen.page.locator("details.trace").first
        await expect(first.locator("summary")).to_contain_text("abc 200 ms failed 3 spans")
        assert await first.get_attribute("open") is not None
        bars = first.locator(".lane i")
        styles = await bars.evaluate_all("all => all.map((one) => [one.style.left, one.style.width])")
        assert styles == [["0%", "100%"], ["25%", "50%"], ["50%", "20%"]]
        assert await bars.evaluate_all("all => all.map((one) => one.className)") == [
            "gateway",
            "prefill",
            "prefill broken",
        ]
        indents = await first.locator(".step").evaluate_all("all => all.map((one) => one.style.paddingLeft)")
        assert indents == ["0px", "10px", "20px"]
        assert await first.locator(".step").nth(1).get_attribute("title") == "tokens=7"
        assert await first.locator(".facts").all_inner_texts() == ["", "in 7  out 1", "CHECKSUM_MISMATCH  #0"]
        assert not seen.complaints


async def test_a_narrow_waterfall_says_but_what_is_wrong(chromium: Browser) -> None:
    async with cluster() as now, opened(chromium, size=PHONE) as seen:
        await play(seen.page, str(now.http.base_url), event(snapshot(traces=[TRACE])))
        await expect(seen.page.locator(".step .alarm")).to_have_text("CHECKSUM_MISMATCH")
        await expect(seen.page.locator(".step .alarm")).to_be_visible()
        assert await seen.page.locator(".facts:visible").count() == 0


async def test_what_was_opened_and_marked_stays_so_when_news_come(chromium: Browser) -> None:
    traces = [TRACE, TRACE | {"request_id": "def"}]
    first, later = (
        snapshot(traces=traces, gateway=snapshot()["gateway"] | {"models": [f"model-{one}"]}) for one in "ab"
    )
    async with cluster() as now, opened(chromium) as seen:
        show_more = await play(seen.page, str(now.http.base_url), event(first))
        await seen.page.locator("summary").nth(1).click()
        await seen.page.mouse.move(0, 0)
        await seen.page.evaluate("getSelection().selectAllChildren(document.querySelector('summary code'))")
        show_more(event(later))
        await expect(seen.page.locator("#facts")).to_contain_text("model-b")
        assert await seen.page.locator("details.trace[open]").count() == 2
        assert await seen.page.evaluate("getSelection().toString()") == "abc"


async def test_traces_stay_while_the_pointer_is_on_them(chromium: Browser) -> None:
    async with cluster() as now, opened(chromium) as seen:
        show_more = await play(seen.page, str(now.http.base_url), event(snapshot(traces=[TRACE])))
        await seen.page.locator(".step").nth(1).hover()
        later = {"models": ["later"]}
        newer = snapshot(traces=[TRACE | {"request_id": "newer"}], gateway=snapshot()["gateway"] | later)
        show_more(event(newer))
        await expect(seen.page.locator("#facts")).to_contain_text("later")
        await expect(seen.page.locator("summary code")).to_have_text("abc")
        await seen.page.mouse.move(0, 0)
        await expect(seen.page.locator("summary code")).to_have_text("newer")


async def test_a_plot_has_gaps_axes_and_the_value_under_the_pointer(chromium: Browser) -> None:
    values: list[float | None] = [None] * (BUCKETS - 6) + [100.0, 200.0, None, 400.0, None, None]
    series = snapshot()["series"] | {"ttft_p50_ms": values, "requests_per_s": [0.0] * BUCKETS}
    async with cluster() as now, opened(chromium) as seen:
        await play(seen.page, str(now.http.base_url), event(snapshot(series=series)))
        figure = seen.page.locator("figure", has_text="TTFT")
        await expect(figure.locator("polyline.c1")).to_have_count(1)
        await expect(figure.locator("circle.c1")).to_have_count(1)
        assert await figure.locator("text.y").all_text_contents() == ["0", "250 ms", "500 ms"]
        assert await figure.locator("text:not(.y)").all_text_contents() == ["−9.9 min", "−5 min", "now"]
        await expect(figure.locator(".key.c1 b")).to_have_text("400 ms")
        box = await figure.locator("svg").bounding_box()
        assert box is not None
        inner = box["width"] - 46 - 8
        await seen.page.mouse.move(box["x"] + 46 + inner * (BUCKETS - 5) / (BUCKETS - 1), box["y"] + 50)
        await expect(figure.locator(".key.c1 b")).to_have_text("200 ms")
        await expect(figure.locator(".when")).to_have_text(f"{4 * BUCKET_S} s ago")


async def test_a_plot_is_as_long_as_the_gateway_is_old_but_two_minutes(chromium: Browser) -> None:
    for known, label in ((3, "−2 min"), (61, "−5 min")):
        series = snapshot()["series"] | {"requests_per_s": [None] * (BUCKETS - known) + [1.0] * known}
        async with cluster() as now, opened(chromium) as seen:
            await play(seen.page, str(now.http.base_url), event(snapshot(series=series)))
            await expect(seen.page.locator("figure text:not(.y)").first).to_have_text(label)


async def test_a_stream_that_ends_is_taken_up_again(chromium: Browser) -> None:
    half = event(snapshot())[:40]
    first, second = (snapshot(gateway=snapshot()["gateway"] | {"missing": reason}) for reason in ("once", "twice"))
    async with cluster() as now, opened(chromium) as seen:
        go_on = await play(seen.page, str(now.http.base_url), event(first) + half)
        await expect(seen.page.locator("#facts")).to_contain_text("once")
        await expect(seen.page.locator("#live.stale")).to_contain_text("connection lost")
        go_on(event(second))
        await expect(seen.page.locator("#facts")).to_contain_text("twice")
        assert not seen.complaints


async def test_a_full_page_fits_a_phone(chromium: Browser) -> None:
    row = {"role": "decode", "state": "ready", "incarnation": "9" * 16, "models": ["m"], "in_flight": 3, "heard_ms": 5}
    row |= dict.fromkeys(("running", "queued", "open_rooms", "succeeded", "failed", "checksum_failures"), 12345)
    row |= {"pages": {"total": 99999, "free": 1, "cached": 2, "used": 99996, "granted": 4}, "kv_bytes_per_s": 1.2e9}
    rows = [row | {"id": f"a-worker-with-a-long-name-{n}"} for n in range(3)]
    error = {"time_ms": 0, "reason": "CHECKSUM_MISMATCH", "endpoint": "/v1/chat/completions", "request_id": "x" * 128}
    room = {"room": "1", "request_id": "y" * 128, "attempt": 1, "phase": "decode", "age_ms": 5}
    room |= {"prefill": "a-worker-with-a-long-name-0", "decode": "a-worker-with-a-long-name-1"}
    full = snapshot(
        workers=rows,
        links=[{"prefill": rows[0]["id"], "decode": rows[1]["id"], "provider": "verbs", "bytes_per_s": None}],
        rooms={"waiting": 1, "prefill": 1, "transfer": 1, "decode": 1, "oldest": [room]},
        errors=[error | {"text": "The transferred KV cache did not arrive intact."}],
        traces=[TRACE | {"request_id": "z" * 128}],
    )
    async with cluster() as now, opened(chromium, size=PHONE) as seen:
        await play(seen.page, str(now.http.base_url), event(full))
        await expect(seen.page.locator("#workers tbody tr")).to_have_count(3)
        assert await seen.overflow() <= 0
