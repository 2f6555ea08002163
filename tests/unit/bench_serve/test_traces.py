"""Traces of Mooncake and Azure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.traces import MOONCAKE_PAGE_TOKENS, TraceRow, read_trace
from tandem.core.errors import TandemError

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109

2023-11-16 18:15:51.2,879,55
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""


def test_mooncake() -> None:
    lines = [
        '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0,1,2,3,4,5,6,7,8,9,10,11,12,13]}',
        '{"timestamp": 3052, "input_length": 513, "output_length": 5, "hash_ids": [0, 14]}',
    ]
    first, second = read_trace(lines)
    assert first == TraceRow(0.0, 6758, 500, tuple(range(14)))
    assert second == TraceRow(3.052, 513, 5, (0, 14))


def test_azure_with_seven_digits() -> None:
    rows = read_trace(AZURE.splitlines(keepends=True))
    assert [(row.prompt_tokens, row.new_tokens) for row in rows] == [(374, 44), (396, 109), (879, 55)]
    assert rows[1].at_s - rows[0].at_s == pytest.approx(4.314579, abs=1e-5)
    assert rows[2].at_s - rows[1].at_s == pytest.approx(0.204831, abs=1e-5)


def test_azure_with_an_offset() -> None:
    first, second = read_trace(AZURE_2024.splitlines())
    assert second.at_s - first.at_s == pytest.approx(0.99007, abs=1e-5)
    assert first.prompt_tokens == 2162


def test_requests_that_ask_for_nothing_are_left_out_and_the_others_are_in_order() -> None:
    lines = [
        '{"timestamp": 2000, "input_length": 4, "output_length": 1}',
        '{"timestamp": 1000, "input_length": 4, "output_length": 0}',
        '{"timestamp": 500, "input_length": 3, "output_length": 1}',
    ]
    assert [row.prompt_tokens for row in read_trace(lines)] == [3, 4]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("a,b\n1,2\n", 1),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", 2),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", 2),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 0}\n', 2),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\nnothing\n', 2),
        ('{"timestamp": 0, "input_length": 1025, "output_length": 1, "hash_ids": [1, 2]}\n', 1),
    ],
)
def test_what_is_wrong_names_its_line(text: str, line: int) -> None:
    with pytest.raises(TandemError, match=f"line {line} of the trace"):
        read_trace(text.splitlines(keepends=True))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20))
def test_what_is_written_is_read(rows: list[tuple[int, int, int]]) -> None:
    pages = [tuple(range(-(-tokens // MOONCAKE_PAGE_TOKENS))) for _, tokens, _ in rows]
    lines = [
        json.dumps({"timestamp": at, "input_length": tokens, "output_length": new, "hash_ids": keys})
        for (at, tokens, new), keys in zip(rows, pages, strict=True)
    ]
    found = read_trace(lines)
    wanted = [TraceRow(at / 1000, tokens, new, keys) for (at, tokens, new), keys in zip(rows, pages, strict=True)]
    assert found == sorted(wanted, key=lambda row: row.at_s)
