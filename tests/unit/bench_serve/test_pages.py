"""The report and its charts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.document import ClientCost, Repeat, result_of
from tandem.cli.bench_serve.html import page, warnings
from tandem.cli.bench_serve.numbers import DROPPED, Outcome, Slo
from tandem.cli.bench_serve.plots import Series, chart, nice_step


def outcome(at_s: float, ttft_ms: float) -> Outcome:
    return Outcome(at_s, at_s, at_s + ttft_ms / 1000 + 0.02, 3, "", ttft_ms, (10, 10), prompt_tokens=5, new_tokens=3)


GOOD = Repeat(1, tuple(outcome(number / 10, 40 + number) for number in range(20)), ClientCost(0.1, 0))
BAD = Repeat(2, (Outcome(0, 0.5, 0.6, 3, "timeout"), Outcome(0, 0, 0, 3, DROPPED)), ClientCost(0.9, 0))


def page_of(*repeats: Repeat, model: str = "m") -> str:
    target = {"url": "http://x", "api": "chat", "model": model}
    return page(result_of(target, {"rate": 5}, "now", repeats, Slo()))


class Tags(HTMLParser):
    """What a page would load, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle", "polyline"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("repeats", [(GOOD,), (GOOD, BAD), (BAD,)])
def test_a_page_is_whole_and_loads_nothing(repeats: tuple[Repeat, ...]) -> None:
    text = page_of(*repeats)
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not tags.loads
    assert "@import" not in text
    assert "url(" not in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_names_can_not_become_markup() -> None:
    text = page_of(GOOD, model="<script>alert(1)</script>")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_what_must_be_known_is_said() -> None:
    target = {"url": "http://x", "api": "chat", "model": "m"}
    found = "\n".join(warnings(result_of(target, {}, "now", (GOOD, BAD), Slo())))
    assert "late" in found
    assert "90% of a core" in found
    assert "1 requests were not sent" in found
    assert "1 timeout" in found
    assert not list(warnings(result_of(target, {}, "now", (GOOD,), Slo())))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=30), st.booleans())
@example([(0.0, 5e-324)], False)
def test_a_chart_is_xml_and_holds_its_points(points: list[tuple[float, float]], dots: bool) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    drawing = ElementTree.fromstring(chart("a < b", "x", "y", [Series("one", xs, ys, dots), Series("&", [], [])]))
    if dots:
        assert len(drawing.findall("circle")) == len(points)
    assert drawing.findtext("title") == "a < b"


@settings(deadline=None)
@given(st.floats(1e-9, 1e9))
def test_a_nice_step_is_1_2_or_5(least: float) -> None:
    step = nice_step(least)
    assert least * (1 - 1e-9) <= step <= least * 10
    assert f"{step:e}"[0] in "125"


def test_numbers_that_are_none_are_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    drawing = ElementTree.fromstring(chart("t", "x", "y", [Series("s", [1, nan, 2], [1, 2, inf], dots=True)]))
    assert len(drawing.findall("circle")) == 1
