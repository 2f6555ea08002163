"""What is asked: prompts made of pieces, so that those which share a beginning share its pieces. Pure.

A piece is a key and a length; its tokens follow from the key alone. Times come from elsewhere: a workload is an endless
list of questions, and the open loop sends them when it is time. A conversation therefore holds answers of ours in place
of the server's: it can't wait for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tandem.cli.bench_serve.choices import WorkloadName
from tandem.cli.bench_serve.traces import MOONCAKE_PAGE_TOKENS, TraceRow

LOWEST_TOKEN: Final = 3
"""Tokens below it are special in most vocabularies."""
_SYSTEM, _SHARED, _FRESH = 0, 1, 2
"""What a piece is; part of its key, so that no two are alike by accident."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a prompt."""

    key: tuple[int, int, int]
    """Seed, kind, number. Equal keys: equal tokens; a shorter piece has the first ones of a longer."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Question:
    """One request, whenever it is sent."""

    pieces: tuple[Piece, ...]
    new_tokens: int
    session: tuple[int, int, int] | None = None
    """Of the conversation that it is a turn of; None: of none."""

    @property
    def session_name(self) -> str:
        """What a client calls the conversation; empty: there is none."""
        return str(self.session) if self.session else ""

    @property
    def prompt_tokens(self) -> int:
        """Of all pieces."""
        return sum(piece.tokens for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Shape:
    """A synthetic workload. Lengths are means; `spread` tells how far they differ."""

    system_tokens: int = 0
    """Shared by all prompts."""
    turn_tokens: int = 512
    """That each turn adds: what the user or a tool says."""
    new_tokens: int = 64
    turns: int = 1
    """Of a conversation; each goes on from all before."""
    conversations: int = 1
    """At a time."""
    documents: int = 0
    """That there are; the n-th is taken in proportion to 1 / n."""
    document_tokens: int = 0
    documents_per_prompt: int = 0
    spread: float = 0.0
    """Turns and answers are uniform in mean * (1 - spread) .. mean * (1 + spread). 0..1."""


SHAPES: Final = {
    WorkloadName.RANDOM: Shape(),
    WorkloadName.CHAT: Shape(256, 96, 128, turns=6, conversations=32, spread=0.5),
    WorkloadName.RAG: Shape(128, 64, 96, documents=64, document_tokens=512, documents_per_prompt=4, spread=0.5),
    WorkloadName.AGENT: Shape(1536, 256, 48, turns=12, conversations=16, spread=0.8),
}


def shaped(name: WorkloadName, prompt_tokens: int | None, new_tokens: int | None, spread: float | None) -> Shape:
    """A workload's shape with what the user has chosen. prompt_tokens: what a turn adds."""
    chosen = {"turn_tokens": prompt_tokens, "new_tokens": new_tokens, "spread": spread}
    return replace(SHAPES[name], **{key: value for key, value in chosen.items() if value is not None})  # type: ignore[arg-type]


def synthetic(shape: Shape, seed: int, dice: np.random.Generator) -> Iterator[Question]:
    """Questions without an end. Equal seeds and dice: equal questions; another seed shares nothing with them."""
    fresh, system = 0, (Piece((seed, _SYSTEM, 0), shape.system_tokens),) if shape.system_tokens else ()
    open_: list[tuple[Piece | None, int, tuple[Piece, ...]]] = [(None, 0, system)] * shape.conversations
    while True:
        chosen = int(dice.integers(len(open_)))
        began, turn, before = open_[chosen]
        said = Piece((seed, _FRESH, fresh), _around(shape.turn_tokens, shape.spread, dice))
        new_tokens = _around(shape.new_tokens, shape.spread, dice)
        pieces = (*before, *_documents(shape, seed, dice), said)
        began = began or said
        yield Question(pieces, new_tokens, began.key if shape.turns > 1 else None)
        answer = Piece((seed, _FRESH, fresh + 1), new_tokens)
        fresh += 2
        goes_on = turn + 1 < shape.turns
        open_[chosen] = (began, turn + 1, (*pieces, answer)) if goes_on else (None, 0, system)


def _documents(shape: Shape, seed: int, dice: np.random.Generator) -> Iterator[Piece]:
    if not shape.documents_per_prompt:
        return
    weights = 1 / np.arange(1, shape.documents + 1)
    count = min(shape.documents, shape.documents_per_prompt)
    for number in dice.choice(shape.documents, count, replace=False, p=weights / weights.sum()):
        yield Piece((seed, _SHARED, int(number)), shape.document_tokens)


def _around(mean: int, spread: float, dice: np.random.Generator) -> int:
    return max(1, int(dice.integers(round(mean * (1 - spread)), round(mean * (1 + spread)), endpoint=True)))


def of_trace(rows: Sequence[TraceRow], seed: int) -> Iterator[Question]:
    """Questions of a trace. Prompts share pages as its hash ids say; without such they share nothing."""
    for number, row in enumerate(rows):
        if not row.page_keys:
            yield Question((Piece((seed, _FRESH, number), row.prompt_tokens),), row.new_tokens)
            continue
        rest = row.prompt_tokens - MOONCAKE_PAGE_TOKENS * (len(row.page_keys) - 1)
        lengths = [*[MOONCAKE_PAGE_TOKENS] * (len(row.page_keys) - 1), rest]
        pieces = tuple(Piece((seed, _SHARED, key), tokens) for key, tokens in zip(row.page_keys, lengths, strict=True))
        yield Question(pieces, row.new_tokens)


def clipped(question: Question, max_prompt_tokens: int, max_new_tokens: int) -> Question:
    """A question whose prompt ends where it gets too long, and whose answer does."""
    left, pieces = max_prompt_tokens, []
    for piece in question.pieces:
        if left:
            pieces.append(Piece(piece.key, min(piece.tokens, left)))
            left -= pieces[-1].tokens
    return replace(question, pieces=tuple(pieces), new_tokens=min(question.new_tokens, max_new_tokens))


def token_ids(piece: Piece, vocabulary: int) -> list[int]:
    """A piece's tokens, LOWEST_TOKEN..vocabulary-1. The tokens of a shorter piece of the same key begin it."""
    dice = np.random.Generator(np.random.PCG64(np.random.SeedSequence(piece.key)))
    found: list[int] = (
        (LOWEST_TOKEN + dice.random(piece.tokens) * (vocabulary - LOWEST_TOKEN)).astype(np.int64).tolist()
    )
    return found
