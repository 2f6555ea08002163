"""The idea in one file does what it says."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from tests.support.example import EXAMPLES, load

EXAMPLE = EXAMPLES / "concept.py"
PROMPT = [5, 9, 2, 44, 17]


@pytest.fixture(scope="module")
def concept() -> ModuleType:
    return load(EXAMPLE)


def test_two_processes_say_what_one_says() -> None:
    ended = subprocess.run(
        [sys.executable, "-I", str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "the same tokens" in ended.stdout
    assert "computed 96 tokens" in ended.stdout
    assert "computed 11 tokens" in ended.stdout


def test_decode_goes_on_from_a_cache_that_was_moved(concept: ModuleType) -> None:
    sender, receiver = concept.Model(), concept.Model()
    cache, first = concept.prefill(sender, PROMPT)
    moved = concept.Cache.from_bytes(cache.to_bytes())
    assert moved == cache
    assert concept.decode(receiver, moved, first, 8) == concept.together(PROMPT, 8)
    assert (sender.computed, receiver.computed) == (5, 7)


def test_what_is_said_depends_on_every_layer_of_the_cache(concept: ModuleType) -> None:
    for number in range(concept.LAYERS):
        cache, first = concept.prefill(concept.Model(), PROMPT)
        whole = concept.Model().forward(first, concept.Cache.from_bytes(cache.to_bytes()))
        cache.values[number][2] = [x + 1 for x in cache.values[number][2]]
        assert concept.Model().forward(first, cache) != whole


def test_attention_is_an_average_of_the_values(concept: ModuleType) -> None:
    cache = concept.Cache()
    cache.keys[0] = [[0.0] * concept.WIDTH] * 2
    cache.values[0] = [[1.0] * concept.WIDTH, [3.0] * concept.WIDTH]
    assert concept.Model._attention(0, [1.0] * concept.WIDTH, cache) == pytest.approx([2.0] * concept.WIDTH)


def test_a_cache_that_is_not_whole_is_refused(concept: ModuleType) -> None:
    cache, _ = concept.prefill(concept.Model(), PROMPT)
    with pytest.raises(ValueError, match="not whole"):
        concept.Cache.from_bytes(cache.to_bytes()[:-8])
