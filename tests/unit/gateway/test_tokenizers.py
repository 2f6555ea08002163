"""Which tokenizer a model gets, and when it is loaded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.text.tokenizer import PromptTokenizer
from tandem.gateway.text.tokenizers import MAX_LOADED, TokenizerPaths, Tokenizers
from tests.support.gateway.doubles import LetterEncoder

REPORTED = {
    "plain": (),
    "own": ("models/own",),
    "other": ("/far/other",),
    "twice": ("/far/gone", "/near/other"),
    "moved": ("/far/own",),
}
PATHS = TokenizerPaths("models/own", {"named": "/named"}, lambda model: REPORTED.get(model, (f"/near/{model}",)))


class Loading:
    """Loads what is near, and notes it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self, path: str) -> PromptTokenizer:
        self.asked.append(path)
        assert self.may.wait(20)
        if path.startswith("/far"):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"nothing at {path}")
        return PromptTokenizer(LetterEncoder())


def tokenizers(load: Loading) -> tuple[Tokenizers, PromptTokenizer]:
    own = PromptTokenizer(LetterEncoder())
    return Tokenizers(PATHS, own, load), own


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        ("named", ("/named",)),
        ("plain", ("models/own",)),
        ("own", ("models/own",)),
        ("other", ("/far/other",)),
        ("moved", ("/far/own", "models/own")),
    ],
)
def test_where_a_tokenizer_may_be(model: str, paths: tuple[str, ...]) -> None:
    assert PATHS.of(model) == paths


async def test_a_tokenizer_is_loaded_once_however_many_wait_for_it() -> None:
    load = Loading()
    load.may.clear()
    found, own = tokenizers(load)
    found.expect(["m"])
    waiting = [asyncio.create_task(found.of("m")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    load.may.set()
    one, other = await waiting[1], await waiting[2]
    assert one is other is await found.of("m") is not own
    assert load.asked == ["/near/m"]
    assert await found.of("plain") is own
    await found.close()


async def test_the_first_path_that_can_be_read_is_taken() -> None:
    load = Loading()
    found, own = tokenizers(load)
    assert await found.of("moved") is own
    assert await found.of("twice") is not own
    assert load.asked == ["/far/own", "/far/gone", "/near/other"]
    await found.close()


async def test_without_a_tokenizer_the_error_says_what_to_do_and_it_is_tried_again() -> None:
    load = Loading()
    found, _ = tokenizers(load)
    found.expect(["other"])
    for _ in range(2):
        with pytest.raises(TandemError, match=r"nothing at /far/other.*TANDEM_GATEWAY_TOKENIZERS") as caught:
            await found.of("other")
        assert caught.value.reason is ErrorReason.NO_TOKENIZER
    assert len(load.asked) >= 2
    await found.close()


async def test_those_used_longest_ago_are_dropped_beyond_the_bound() -> None:
    load = Loading()
    found, _ = tokenizers(load)
    for number in range(MAX_LOADED):
        await found.of(f"m{number}")
    await found.of("m0")
    await found.of("one more")
    load.asked.clear()
    await found.of("m0")
    await found.of("m1")
    assert load.asked == ["/near/m1"]
    await found.close()
