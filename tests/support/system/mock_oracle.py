"""What the mock engine must answer with the vocabulary of the tiny model."""

from __future__ import annotations

from tests.support.mock.oracle import Oracle
from tests.support.system.system import MODEL

PAGE_SIZE = 16
LAYERS = 2
HEAD_BYTES = 64
PAGE_BYTES = PAGE_SIZE * LAYERS * 2 * HEAD_BYTES
"""Bytes of a page on one rank."""


def tiny_oracle(tp_size: int = 1) -> Oracle:
    """For `tandem up --engine mock` with the tiny model: the texts are read from its tokenizer a second time."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    words = [tokenizer.decode([token], skip_special_tokens=False) for token in range(count)]
    end = tokenizer.token_to_id("<|end|>")
    whole = [token for token in range(count) if token not in special and words[token] and "\ufffd" not in words[token]]
    return Oracle(
        page_size=PAGE_SIZE,
        layers=LAYERS,
        head_bytes=HEAD_BYTES,
        tp_size=tp_size,
        vocab=count,
        context_tokens=8_192,
        words=words,
        emits=[end, *whole],
        end=end,
    )
