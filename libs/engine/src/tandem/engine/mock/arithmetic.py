"""The mock's arithmetic: from tokens to KV bytes, from KV bytes to tokens. All of it modulo 2^64, all of it numpy.

    prefix[i]  = sum over j <= i of mix(token[j] + G) * P^j      the running hash of the prompt up to token i
    seed[i]    = mix(prefix[i] + (i + 1) * G)
    salt       = mix((rank << 40 | layer << 24 | kv << 20 | w) + 1)      kv: 0 = K, 1 = V; w: word of the token's slot
    word       = fold((seed ^ salt) * P)                                 fold(y) = y ^ y >> 32

    page       = sum over k of fold((word[k] ^ word[k] >> 29) * P) * Q^k     k: K of each layer, V of each layer;
                                                                             in each, the page's words in order
    rank       = sum over pages i of mix(page[i] + (i + 1) * G)
    digest     = sum over ranks r of mix(rank[r] + (r + 1) * G)

    token 0    = choices[mix(digest + G) % len(choices)]                 computed by prefill, travels as metadata
    chain      = mix(digest + token 0 + 1)
    token i    = choices[mix(chain + (i + 1) * G) % len(choices)]

mix is the finalizer of splitmix64. Any changed word changes its page's value, and any page that moves changes the
digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tandem.core.pages import I64

U64 = npt.NDArray[np.uint64]

MASK: Final = 2**64 - 1
G: Final = 0x9E3779B97F4A7C15
P: Final = 0xD1342543DE82EF95
Q: Final = 0xAF251AF3B0F025B5

_G = np.uint64(G)
_P = np.uint64(P)


def mix(values: U64) -> U64:
    """The finalizer of splitmix64, element by element."""
    out = values ^ (values >> np.uint64(30))
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def mix_one(value: int) -> int:
    """`mix` of one Python int."""
    return int(mix(np.array([value & MASK], dtype=np.uint64))[0])


def powers(base: int, count: int) -> U64:
    """base^0 .. base^(count - 1)."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def prompt_seeds(tokens: Sequence[int], token_powers: U64) -> U64:
    """The seed of each token's slot; token_powers: powers of P, at least one per token."""
    ids = np.array(tokens, dtype=np.uint64)
    prefix = np.cumsum(mix(ids + _G) * token_powers[: ids.size], dtype=np.uint64)
    return mix(prefix + np.arange(1, ids.size + 1, dtype=np.uint64) * _G)


def slot_salts(rank: int, layers: int, words: int) -> U64:
    """Salts [2 * layers, words] of one rank: the K buffers of all layers, then the V buffers."""
    kv = np.arange(2, dtype=np.uint64)[:, None, None] << np.uint64(20)
    layer = np.arange(layers, dtype=np.uint64)[None, :, None] << np.uint64(24)
    word = np.arange(words, dtype=np.uint64)[None, None, :]
    place = np.uint64(rank << 40) | layer | kv | word
    return mix((place + np.uint64(1)).reshape(2 * layers, words))


def slot_words(seeds: U64, salts: U64) -> U64:
    """KV words [buffers, tokens, words] of tokens with these seeds [tokens] and salts [buffers, words]."""
    out = seeds[None, :, None] ^ salts[:, None, :]
    out *= _P
    out ^= out >> np.uint64(32)
    return out


def rank_digest(words: U64, word_powers: U64) -> int:
    """Digest of one rank's pages: words [buffers, pages, words of a page], word_powers [buffers, words of a page]."""
    folded = words ^ (words >> np.uint64(29))
    folded *= _P
    folded ^= folded >> np.uint64(32)
    folded *= word_powers[:, None, :]
    pages = folded.sum(axis=(0, 2), dtype=np.uint64)
    return _ordered_sum(pages)


def digest_of(ranks: Sequence[int]) -> int:
    """Digest over all ranks, in the order of their numbers."""
    return _ordered_sum(np.array(ranks, dtype=np.uint64))


def _ordered_sum(values: U64) -> int:
    places = np.arange(1, values.size + 1, dtype=np.uint64)
    return int(mix(values + places * _G).sum(dtype=np.uint64))


def first_token(digest: int, choices: I64) -> int:
    """The token that prefill hands over."""
    return int(choices[mix_one(digest + G) % choices.size])


def chain_of(digest: int, first: int) -> int:
    """What every token after the first is drawn from."""
    return mix_one(digest + first + 1)


def later_tokens(chain: int, count: int, choices: I64) -> list[int]:
    """Tokens 1 .. count of an answer; token 0 is `first_token`."""
    places = np.arange(2, count + 2, dtype=np.uint64) * _G
    picks: I64 = (mix(places + np.array(chain, dtype=np.uint64)) % np.uint64(choices.size)).astype(np.int64)
    found: list[int] = choices[picks].tolist()
    return found
