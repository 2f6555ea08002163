"""The first token of an answer, which both legs say: prefill once it is computed, decode once the KV has landed.

The first to say it is passed on, the other is held against it. So the client's first token does not wait for the KV to
move, and every later one still comes of KV that decode has verified.
"""

from __future__ import annotations

from tandem.core.errors import ErrorReason, TandemError
from tandem.v1 import session_pb2


def comes_early(sampling: session_pb2.Sampling, logprobs: session_pb2.LogprobOptions | None, *, stream: bool) -> bool:
    """Whether prefill is to say it: only where the client sees it sooner, and where its text stands by itself.

    A text or token that ends the answer is left out of it, which decode knows how to do; with one token in all there
    is nothing to be sooner than.
    """
    stops = bool(sampling.stop) or bool(sampling.stop_token_ids) or not sampling.skip_special_tokens
    return stream and logprobs is None and not stops and sampling.max_new_tokens > 1


class FirstToken:
    """What prefill has said of one answer, over all its attempts."""

    def __init__(self) -> None:
        self._said: session_pb2.Delta | None = None
        self._owed_tokens: list[int] = []
        self._owed_text = ""
        self._decode_spoke = False

    def new_attempt(self) -> None:
        """Decode begins the answer anew."""
        self._decode_spoke = False
        if self._said is not None:
            self._owed_tokens, self._owed_text = list(self._said.token_ids), self._said.text

    @property
    def owes(self) -> bool:
        """Whether decode has still to say what was said before it."""
        return bool(self._owed_tokens or self._owed_text)

    def from_prefill(self, delta: session_pb2.Delta) -> session_pb2.Delta | None:
        """News for the client of what prefill says; None if it brings none."""
        if self._said is not None or self._decode_spoke or not delta.text:
            return None
        self._said = session_pb2.Delta(room=delta.room, token_ids=delta.token_ids, text=delta.text)
        self.new_attempt()
        return self._said

    def from_decode(self, delta: session_pb2.Delta) -> session_pb2.Delta:
        """What of decode's news is new to the client.

        Raises TandemError(TRANSFER_FAILED) if decode says another token: then one of the two is wrong, or this is
        another attempt, whose dice fell otherwise.
        """
        self._decode_spoke = True
        if not self.owes:
            return delta
        tokens = len(self._owed_tokens)
        same_tokens = list(delta.token_ids[:tokens]) == self._owed_tokens
        # Decode's text may lag behind its tokens; it never runs ahead of them.
        text = min(len(self._owed_text), len(delta.text))
        if not same_tokens or not delta.text.startswith(self._owed_text[:text]):
            raise TandemError(ErrorReason.TRANSFER_FAILED, "decode goes on from another token than the first one sent")
        rest = session_pb2.Delta()
        rest.CopyFrom(delta)
        rest.token_ids[:] = delta.token_ids[tokens:]
        rest.text = delta.text[text:]
        self._owed_tokens, self._owed_text = [], self._owed_text[text:]
        return rest
