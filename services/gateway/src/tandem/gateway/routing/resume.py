"""What a client was told of one answer, and whether another room can go on from there.

A room that goes on has the prompt and the tokens told so far as its prompt. To an engine that is a longer prompt: it
does not know what these tokens did to a grammar, a penalty or a stop text, so answers with one of those do not go on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tandem.gateway.calls import Sequence
from tandem.gateway.so_far import SoFar
from tandem.v1 import session_pb2

_LEAD_TOKENS: Final = 5
"""Tokens of the prompt that the answer's text is read together with, as engines do."""


class Told:
    """Follows one sequence over all its attempts."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._text_of = sequence.texts.text
        self._so_far = SoFar()

    def add(self, delta: session_pb2.Delta) -> session_pb2.Delta:
        """Takes news that go to the client; returns them with the counts of the whole answer, if they are its last."""
        self._so_far.add(delta)
        if delta.HasField("finish"):
            prompt_tokens = len(self._sequence.input_ids)
            delta.finish.prompt_tokens = prompt_tokens
            delta.finish.completion_tokens = len(self._so_far.tokens)
            delta.finish.cached_tokens = min(delta.finish.cached_tokens, prompt_tokens)
        return delta

    def forget(self) -> None:
        """The answer begins anew."""
        self._so_far.clear()

    def can_go_on(self) -> bool:
        """Whether something was told, and another room can carry on from there without the client noticing."""
        logprobs, sampling = self._sequence.item.logprobs, self._sequence.sampling
        if not 0 < len(self._so_far.tokens) < sampling.max_new_tokens:
            return False
        prompt_wanted = logprobs is not None and logprobs.prompt
        return not prompt_wanted and not _looks_back(sampling) and self._text_is_whole()

    def rest(self) -> Sequence:
        """What is still to be generated, as a sequence of its own."""
        told, one = len(self._so_far.tokens), self._sequence
        sampling = session_pb2.Sampling()
        sampling.CopyFrom(one.sampling)
        sampling.max_new_tokens -= told
        sampling.min_new_tokens = max(0, sampling.min_new_tokens - told)
        early = one.early_first_token and sampling.max_new_tokens > 1
        return replace(
            one, input_ids=(*one.input_ids, *self._so_far.tokens), sampling=sampling, early_first_token=early
        )

    def _text_is_whole(self) -> bool:
        """Whether the text told is that of all tokens told: the bytes of a character may be spread over several."""
        skip, lead = self._sequence.sampling.skip_special_tokens, list(self._sequence.input_ids[-_LEAD_TOKENS:])
        return self._text_of([*lead, *self._so_far.tokens], skip) == self._text_of(lead, skip) + self._so_far.text


def _looks_back(sampling: session_pb2.Sampling) -> bool:
    """Whether the next token depends on more than the tokens before it, or on where the answer began."""
    grammar = sampling.json_schema or sampling.regex or sampling.ebnf
    penalties = sampling.frequency_penalty or sampling.presence_penalty
    repetition = sampling.HasField("repetition_penalty") and sampling.repetition_penalty != 1
    return bool(grammar or penalties or repetition or sampling.stop)
