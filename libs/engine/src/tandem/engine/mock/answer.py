"""An answer, composed in full when it begins: the mock knows all its tokens at once, so a step only hands one out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tandem.engine.mock import arithmetic
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import FinishKind, LogprobOptions, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, the text that each adds, and how it ends."""

    tokens: list[int]
    texts: list[str]
    kind: FinishKind
    matched_text: str = ""
    matched_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class _TextStop:
    """Where a stop text is complete (index of the token) and where it begins (position in the text)."""

    index: int
    position: int
    order: int


def compose(tokens: list[int], sampling: Sampling, vocabulary: Vocabulary) -> Answer:
    """Cuts `tokens`, as many as there may be, at the first stop.

    A stop token is part of the tokens but not of the text; a stop text is part of neither text nor what follows it.
    Stops count from token `min_new_tokens` on.
    """
    floor = max(sampling.min_new_tokens, 1) - 1
    ended_by = _first_stop_token(tokens, floor, sampling, vocabulary)
    if ended_by is not None:
        tokens = tokens[: ended_by + 1]
    texts = vocabulary.texts(tokens, skip_special=sampling.skip_special_tokens)
    if ended_by is not None:
        texts[-1] = ""
    found = _first_stop_text(texts, floor, sampling.stop)
    if found is not None:
        kept = _cut(texts[: found.index + 1], found.position)
        return Answer(tokens[: found.index + 1], kept, FinishKind.STOP, matched_text=sampling.stop[found.order])
    if ended_by is not None:
        return Answer(tokens, texts, FinishKind.STOP, matched_token_id=tokens[-1])
    return Answer(tokens, texts, FinishKind.LENGTH)


def _first_stop_token(tokens: list[int], floor: int, sampling: Sampling, vocabulary: Vocabulary) -> int | None:
    stops = set(sampling.stop_token_ids)
    if vocabulary.end is not None and not sampling.ignore_eos:
        stops.add(vocabulary.end)
    return next((index for index in range(floor, len(tokens)) if tokens[index] in stops), None) if stops else None


def _first_stop_text(texts: list[str], floor: int, stops: Sequence[str]) -> _TextStop | None:
    if not stops or floor >= len(texts):
        return None
    text = "".join(texts)
    ends = list(accumulate(map(len, texts)))
    too_early = ends[floor - 1] if floor else 0
    found = []
    for order, stop in enumerate(stops):
        position = text.find(stop, max(0, too_early - len(stop) + 1)) if stop else -1
        if position >= 0:
            found.append((bisect_left(ends, position + len(stop)), position, order))
    return _TextStop(*min(found)) if found else None


def _cut(texts: list[str], length: int) -> list[str]:
    """Texts of which only the first `length` characters are left."""
    kept = []
    for text in texts:
        kept.append(text[:length])
        length -= len(kept[-1])
    return kept


def logprob_of(chain: int, place: int, token: int, options: LogprobOptions, vocabulary: Vocabulary) -> TokenLogprob:
    """Made-up log probabilities, the same every time: the token itself is the likeliest."""
    drawn = arithmetic.mix_one(chain + (place + 1) * arithmetic.G + token)
    own = -(drawn % 4096) / 4096
    others = (int(vocabulary.choices[(drawn + rank) % vocabulary.choices.size]) for rank in range(1, options.top))
    top = ((token, own), *((other, own - rank) for rank, other in enumerate(others, 1)))
    return TokenLogprob(token, own, top[: options.top])


def prompt_logprobs(
    prompt: Sequence[int], options: LogprobOptions | None, vocabulary: Vocabulary
) -> tuple[TokenLogprob, ...]:
    """Of the prompt's tokens from `prompt_start`, if they are asked for; the first token of a prompt has none."""
    if options is None or not options.prompt:
        return ()
    return tuple(
        logprob_of(0, place, prompt[place], options, vocabulary) if place else TokenLogprob(prompt[0], None)
        for place in range(options.prompt_start, len(prompt))
    )
