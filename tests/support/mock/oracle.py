"""What the mock engine must answer, told by plain integers.

Shares no code with the engine: every number below is written down a second time, one byte and one token after the
other, slow on purpose. A test that compares the two compares two readings of one specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TWO_64 = 1 << 64
GAMMA = 0x9E3779B97F4A7C15
TOKEN_BASE = 0xD1342543DE82EF95
WORD_BASE = 0xAF251AF3B0F025B5


def scramble(number: int) -> int:
    """One round of splitmix64's finalizer."""
    number %= TWO_64
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % TWO_64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % TWO_64
    return number ^ (number >> 31)


@dataclass(frozen=True)
class Prediction:
    """An answer."""

    tokens: list[int]
    text: str
    kind: str
    """"stop" or "length"."""
    matched_text: str = ""
    matched_token: int | None = None


@dataclass(frozen=True)
class Oracle:
    """The mock as its settings describe it. `words`: text per token, if it is not the built-in vocabulary; `emits`:
    the tokens that may be emitted then; `end`: the token that ends a text."""

    page_size: int
    layers: int
    head_bytes: int
    tp_size: int
    vocab: int
    context_tokens: int
    words: Sequence[str] | None = None
    emits: Sequence[int] | None = None
    end: int | None = 0

    # ------------------------------------------------------------ KV

    def page_bytes(self, prompt: Sequence[int], rank: int, page: int) -> bytes:
        """The bytes of one page of a prompt: K of each layer, then V of each layer."""
        seeds = self._seeds(prompt)
        whole = bytearray()
        for kv in (0, 1):
            for layer in range(self.layers):
                for slot in range(self.page_size):
                    token = page * self.page_size + slot
                    for word in range(self.head_bytes // 8):
                        number = self._word(seeds[token], rank, layer, kv, word) if token < len(prompt) else 0
                        whole += number.to_bytes(8, "little")
        return bytes(whole)

    def _seeds(self, prompt: Sequence[int]) -> list[int]:
        seeds, running, factor = [], 0, 1
        for place, token in enumerate(prompt):
            running = (running + scramble(token + GAMMA) * factor) % TWO_64
            factor = factor * TOKEN_BASE % TWO_64
            seeds.append(scramble(running + (place + 1) * GAMMA))
        return seeds

    @staticmethod
    def _word(seed: int, rank: int, layer: int, kv: int, word: int) -> int:
        salt = scramble(rank * 2**40 + layer * 2**24 + kv * 2**20 + word + 1)
        number = (seed ^ salt) * TOKEN_BASE % TWO_64
        return number ^ (number >> 32)

    # ------------------------------------------------------------ digest

    def digest(self, pages_of_ranks: Sequence[Sequence[bytes]]) -> int:
        """Folds pages[rank][page], each as `page_bytes` gives it."""
        total = 0
        for rank, pages in enumerate(pages_of_ranks):
            of_rank = 0
            for place, page in enumerate(pages):
                of_rank += scramble(self._page_value(page) + (place + 1) * GAMMA)
            total += scramble(of_rank + (rank + 1) * GAMMA)
        return total % TWO_64

    @staticmethod
    def _page_value(page: bytes) -> int:
        value, factor = 0, 1
        for start in range(0, len(page), 8):
            word = int.from_bytes(page[start : start + 8], "little")
            folded = (word ^ (word >> 29)) * TOKEN_BASE % TWO_64
            folded ^= folded >> 32
            value = (value + folded * factor) % TWO_64
            factor = factor * WORD_BASE % TWO_64
        return value

    def prompt_digest(self, prompt: Sequence[int]) -> int:
        """Digest of a prompt whose pages all arrived where they belong."""
        pages = -(-len(prompt) // self.page_size)
        return self.digest(
            [[self.page_bytes(prompt, rank, page) for page in range(pages)] for rank in range(self.tp_size)]
        )

    # ------------------------------------------------------------ tokens and text

    def tokens(self, digest: int, count: int) -> list[int]:
        """The first tokens that follow from a digest."""
        choices = self.emits if self.emits is not None else range(self.vocab)
        first = choices[scramble(digest + GAMMA) % len(choices)]
        chain = scramble(digest + first + 1)
        return [first] + [choices[scramble(chain + (place + 1) * GAMMA) % len(choices)] for place in range(1, count)]

    def word_text(self, token: int) -> str:
        """Text of one token."""
        if self.words is not None:
            return self.words[token]
        if token == 0:
            return "</s>"
        text = " "
        while token > 0:
            text += "bdfghjklmnprstvz"[token % 80 // 5] + "aeiou"[token % 5]
            token //= 80
        return text

    def predict(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
        ignore_eos: bool = False,
        min_new_tokens: int = 0,
        skip_special: bool = True,
        digest: int | None = None,
    ) -> Prediction:
        """The whole answer to a prompt; with `digest`, the answer that other KV would give."""
        limit = min(max_new_tokens, self.context_tokens - len(prompt))
        drawn = self.tokens(self.prompt_digest(prompt) if digest is None else digest, limit)
        enders = set(stop_tokens) | ({self.end} if self.end is not None and not ignore_eos else set())
        text, sent = "", []
        for token in drawn:
            sent.append(token)
            may_stop = len(sent) >= min_new_tokens
            if may_stop and token in enders:
                return Prediction(sent, text, "stop", matched_token=token)
            before = len(text)
            text += "" if token == self.end and skip_special else self.word_text(token)
            # A stop text counts where its last character is new.
            hits = [
                (place, order)
                for order, wanted in enumerate(stop)
                for place in range(len(text))
                if text.startswith(wanted, place) and before < place + len(wanted) <= len(text)
            ]
            if may_stop and hits:
                place, order = min(hits)
                return Prediction(sent, text[:place], "stop", matched_text=stop[order])
        return Prediction(sent, text, "length")

    def pieces(self, prompt: Sequence[int], tokens: Sequence[int], **sampling: bool) -> list[int] | None:
        """How an answer came about that may have gone on in other rooms: the tokens of each. None if it is wrong.

        A room that goes on has the tokens before it in its prompt, so each room's answer is the one to that prompt.
        """
        pieces, told = [], 0
        while told < len(tokens):
            wanted = self.predict([*prompt, *tokens[:told]], len(tokens) - told, **sampling).tokens
            same = 0
            while same < len(wanted) and wanted[same] == tokens[told + same]:
                same += 1
            if not same:
                return None
            pieces.append(same)
            told += same
        return pieces
