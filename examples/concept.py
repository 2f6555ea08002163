"""Prefill here, decode there: the whole idea in one file. `python examples/concept.py`; needs nothing but Python.

A transformer answers in two kinds of work. *Prefill* computes the prompt's tokens all at once and leaves behind, for
each token and layer, a key and a value: the KV cache. *Decode* then makes one token at a time, and each looks back at
all keys and values before it. Prefill fills a processor, decode waits for memory; in one engine each gets in the
way of the other.

Here two processes share the work. The first computes the prompt and sends its KV cache through a pipe; the second goes
on from there and never computes the prompt. In the end a third way, all in one process, must have said the same tokens.

The model is a toy: two layers, one head, weights drawn from a seed. What it says has no meaning; how it comes to say it
is real.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

WIDTH = 16
LAYERS = 2
VOCABULARY = 50
PROMPT = [7, 3, 41, 11, 28, 3, 19, 46] * 12
NEW_TOKENS = 12

Vector = list[float]
Matrix = list[Vector]


# ---------------------------------------------------------------- the model


def _matrix(dice: random.Random, rows: int, columns: int) -> Matrix:
    return [[dice.gauss(0, 3 / math.sqrt(columns)) for _ in range(columns)] for _ in range(rows)]


def times(matrix: Matrix, vector: Vector) -> Vector:
    """Matrix times vector."""
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def plus(one: Vector, other: Vector) -> Vector:
    """Their sum."""
    return [a + b for a, b in zip(one, other, strict=True)]


def normal(vector: Vector) -> Vector:
    """Scaled to a mean square of 1."""
    scale = math.sqrt(sum(x * x for x in vector) / len(vector) + 1e-6)
    return [x / scale for x in vector]


@dataclass
class Layer:
    """Weights of one layer."""

    query: Matrix
    key: Matrix
    value: Matrix
    out: Matrix


@dataclass
class Cache:
    """The KV cache: for each layer a key and a value of every token so far. This is what moves."""

    keys: list[Matrix] = field(default_factory=lambda: [[] for _ in range(LAYERS)])
    values: list[Matrix] = field(default_factory=lambda: [[] for _ in range(LAYERS)])

    @property
    def tokens(self) -> int:
        """How many it holds."""
        return len(self.keys[0])

    def to_bytes(self) -> bytes:
        """As plain numbers, 8 bytes each: no pickle, which would run what the other side sends."""
        numbers = [x for side in (self.keys, self.values) for layer in side for vector in layer for x in vector]
        return struct.pack(f"<I{len(numbers)}d", self.tokens, *numbers)

    @staticmethod
    def from_bytes(data: bytes) -> Cache:
        """Back from to_bytes. Raises ValueError if it is not whole."""
        (tokens,) = struct.unpack_from("<I", data)
        count = 2 * LAYERS * tokens * WIDTH
        if len(data) != 4 + 8 * count:
            raise ValueError("the KV cache is not whole")
        numbers = iter(struct.unpack_from(f"<{count}d", data, 4))
        sides = [
            [[[next(numbers) for _ in range(WIDTH)] for _ in range(tokens)] for _ in range(LAYERS)] for _ in range(2)
        ]
        return Cache(*sides)


class Model:
    """A tiny transformer. Equal seeds are equal models, as two engines have that load one checkpoint."""

    def __init__(self, seed: int = 0) -> None:
        dice = random.Random(seed)
        self.embedding = _matrix(dice, VOCABULARY, WIDTH)
        self.layers = [Layer(*(_matrix(dice, WIDTH, WIDTH) for _ in range(4))) for _ in range(LAYERS)]
        self.computed = 0
        """Tokens that went through the layers: the work that was done."""

    def forward(self, token: int, cache: Cache) -> Vector:
        """One token through all layers: appends its keys and values, looks back at all; returns each token's score."""
        self.computed += 1
        position = cache.tokens
        hidden = [x + math.sin(position / (i + 1)) for i, x in enumerate(self.embedding[token])]
        for number, layer in enumerate(self.layers):
            seen = normal(hidden)
            cache.keys[number].append(times(layer.key, seen))
            cache.values[number].append(times(layer.value, seen))
            hidden = plus(hidden, times(layer.out, self._attention(number, times(layer.query, seen), cache)))
        return times(self.embedding, normal(hidden))

    @staticmethod
    def _attention(number: int, query: Vector, cache: Cache) -> Vector:
        """The values so far, each as much as its key fits the query."""
        fits = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(WIDTH) for key in cache.keys[number]]
        most = max(fits)
        weights = [math.exp(fit - most) for fit in fits]
        total = sum(weights)
        mixed = [0.0] * WIDTH
        for weight, value in zip(weights, cache.values[number], strict=True):
            mixed = [m + weight / total * v for m, v in zip(mixed, value, strict=True)]
        return mixed


def likeliest(scores: Vector) -> int:
    """The token with the highest score."""
    return scores.index(max(scores))


# ---------------------------------------------------------------- the two halves


def prefill(model: Model, prompt: list[int]) -> tuple[Cache, int]:
    """The prompt's KV cache, and the first token of the answer."""
    cache = Cache()
    for token in prompt[:-1]:
        model.forward(token, cache)
    return cache, likeliest(model.forward(prompt[-1], cache))


def decode(model: Model, cache: Cache, first: int, count: int) -> list[int]:
    """`count` tokens of the answer, of which the first is known already."""
    answer = [first]
    while len(answer) < count:
        answer.append(likeliest(model.forward(answer[-1], cache)))
    return answer


# ---------------------------------------------------------------- two processes and a pipe


def prefill_worker(prompts: Connection, caches: Connection) -> None:
    """Computes a prompt and hands over its KV cache."""
    model = Model()
    cache, first = prefill(model, list(prompts.recv_bytes()))
    caches.send_bytes(struct.pack("<II", first, model.computed) + cache.to_bytes())


def decode_worker(caches: Connection, answers: Connection, count: int) -> None:
    """Takes a KV cache and says the answer. It never sees the prompt."""
    model = Model()
    data = caches.recv_bytes()
    first, _ = struct.unpack_from("<II", data)
    answer = decode(model, Cache.from_bytes(data[8:]), first, count)
    answers.send_bytes(struct.pack(f"<I{len(answer)}B", model.computed, *answer))


@dataclass(frozen=True)
class Answer:
    """What came of it, and what it cost."""

    tokens: list[int]
    moved_bytes: int
    prefill_computed: int
    """Tokens that the prefill process computed."""
    decode_computed: int


def disaggregated(prompt: list[int], count: int) -> Answer:
    """The answer of two processes. This one only stands between them, as it wants to know how much moves."""
    context = multiprocessing.get_context("spawn")
    prompt_in, prompt_out = context.Pipe()
    cache_out, cache_in = context.Pipe()
    relay_out, relay_in = context.Pipe()
    answer_out, answer_in = context.Pipe()
    workers = [
        context.Process(target=prefill_worker, args=(prompt_out, cache_in)),
        context.Process(target=decode_worker, args=(relay_out, answer_in, count)),
    ]
    for worker in workers:
        worker.start()
    for theirs in (prompt_out, cache_in, relay_out, answer_in):
        theirs.close()  # so that the end of a process is seen here
    try:
        prompt_in.send_bytes(bytes(prompt))
        moved = cache_out.recv_bytes()
        relay_in.send_bytes(moved)
        said = answer_out.recv_bytes()
    finally:
        for ours in (prompt_in, cache_out, relay_in, answer_out):
            ours.close()  # one that still waits would wait for ever
        for worker in workers:
            worker.join()
    _, prefilled = struct.unpack_from("<II", moved)
    (decoded,) = struct.unpack_from("<I", said)
    return Answer(list(said[4:]), len(moved), prefilled, decoded)


def together(prompt: list[int], count: int) -> list[int]:
    """The same in one process: what the answer must be."""
    model = Model()
    cache, first = prefill(model, prompt)
    return decode(model, cache, first, count)


def main() -> None:
    """Both ways, and what each process did."""
    began = time.perf_counter()
    answer = disaggregated(PROMPT, NEW_TOKENS)
    took = time.perf_counter() - began
    print(f"prompt           {len(PROMPT)} tokens")
    print(f"prefill process  computed {answer.prefill_computed} tokens, said the first one")
    print(f"moved            {answer.moved_bytes:,} bytes of KV cache")
    print(f"decode process   computed {answer.decode_computed} tokens, said the other {NEW_TOKENS - 1}")
    print(f"answer           {answer.tokens}")
    same = answer.tokens == together(PROMPT, NEW_TOKENS)
    print(f"in one process   {'the same tokens' if same else 'OTHER TOKENS'}")
    alone = len(PROMPT) + NEW_TOKENS - 1
    print(f"\nWithout the KV cache decode would have computed {alone} tokens. While it decodes, the prefill process is")
    print(f"free for the next prompt. It took {took:.1f} s, most of it starting two processes.")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
