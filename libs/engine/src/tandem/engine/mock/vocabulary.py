"""The words of the mock: which tokens it may emit, and the text of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.pages import I64

_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aeiou"
_SYLLABLES: Final = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)
_END_TEXT: Final = "</s>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token's text stands for itself, so that texts can be joined token by token."""

    pieces: tuple[str, ...]
    """Text of each token id."""
    choices: I64
    """Tokens that may be emitted; the one that ends the text comes first, if there is one."""
    special: frozenset[int]
    """Tokens that are left out of the text if the client wishes."""
    end: int | None
    """The token that ends the text."""

    def texts(self, tokens: Sequence[int], *, skip_special: bool) -> list[str]:
        """Text of each token."""
        if skip_special and self.special:
            return ["" if token in self.special else self.pieces[token] for token in tokens]
        return [self.pieces[token] for token in tokens]

    def without_end(self) -> Vocabulary:
        """The same, but the token that ends the text is never emitted, so that every one has a text."""
        return replace(self, choices=self.choices[self.choices != self.end])


def built_in(count: int) -> Vocabulary:
    """Token 0 ends the text; each other one is a word: a space, then its number in syllables, lowest first."""
    pieces = (_END_TEXT, *(_word(token) for token in range(1, count)))
    return Vocabulary(pieces, np.arange(count, dtype=np.int64), frozenset({0}), 0)


def _word(token: int) -> str:
    text = " "
    while token:
        token, low = divmod(token, len(_SYLLABLES))
        text += _SYLLABLES[low]
    return text


def from_tokenizer(folder: Path) -> Vocabulary:
    """The tokens of a Hugging Face tokenizer whose text is whole by itself.

    Raises TandemError(ENGINE_FAILED) if the folder has no readable tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TandemError(ErrorReason.ENGINE_FAILED, f"the mock's tokenizer: there is no {path}")
    from tokenizers import Tokenizer  # only this way of running the mock needs it

    tokenizer = Tokenizer.from_file(str(path))
    special = frozenset(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)
    count = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    end_text = _end_text(folder / "tokenizer_config.json")
    end = tokenizer.token_to_id(end_text) if end_text else None
    anchor = next((token for token in range(count) if token not in special and tokenizer.decode([token]).isalpha()), 0)
    prefix = tokenizer.decode([anchor])
    # Behind an anchor, since some decoders strip the space that begins a text.
    decoded = tokenizer.decode_batch([[anchor, token] for token in range(count)], skip_special_tokens=False)
    pieces = tuple(text.removeprefix(prefix) for text in decoded)
    whole = [
        token for token in range(count) if token not in special and pieces[token] and "\ufffd" not in pieces[token]
    ]
    return Vocabulary(pieces, _choices(end, whole), special, end)


def _choices(end: int | None, whole: Iterable[int]) -> I64:
    return np.array(([] if end is None else [end]) + list(whole), dtype=np.int64)


def _end_text(path: Path) -> str:
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token") or ""
    return str(found["content"] if isinstance(found, dict) else found)
