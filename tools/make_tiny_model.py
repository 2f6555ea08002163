"""Makes models/tandem-tiny: a two-million-parameter Llama with its own tokenizer, trained on tools/tiny_corpus.py.

    python -m tools.make_tiny_model --out models/tandem-tiny --seconds 420

Needs torch, transformers and tokenizers (all in requirements/sglang-cpu.txt) and a CPU. With `--steps` the run does not
look at the clock, so that the same seed on the same build of torch gives the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.tiny_corpus import documents

VOCABULARY = 1024
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
BEGIN, END, PAD = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BATCH_SHAPES = ((16, 192), (16, 192), (4, 768), (16, 192), (16, 192), (2, 2048))
"""Rows and tokens per row of the steps, in turn: mostly short, some long, so that long prompts work, too."""
PEAK_RATE = 4e-3
WARM_UP_STEPS = 20
TOKENIZER_DOCUMENTS = 4000


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any bytes go in and come out again. Adds no token of its own to a prompt."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    source = documents(Random(seed))
    texts = (plain(next(source)) for _ in range(TOKENIZER_DOCUMENTS))
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL_TOKENS[BEGIN],
        eos_token=SPECIAL_TOKENS[END],
        pad_token=SPECIAL_TOKENS[PAD],
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def plain(document: str | list[dict[str, str]]) -> str:
    """A document's text without roles, for the tokenizer's training."""
    return document if isinstance(document, str) else "\n".join(message["content"] for message in document)


def make_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of about two million float32 parameters that can be split over two ranks."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=480,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
            tie_word_embeddings=False,
            dtype=torch.float32,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, document: str | list[dict[str, str]], rng: Random) -> list[int]:
    """Token ids of a document, with the end token.

    A story is cut behind a space now and then and its parts are encoded on their own, so that the model also goes on
    from a prompt that ends with a space.
    """
    if not isinstance(document, str):
        return list(tokenizer.encode(tokenizer.apply_chat_template(document, tokenize=False)))
    cut = 0
    if rng.random() < 0.5:
        spaces = [place for place, char in enumerate(document[:80]) if char == " "]
        cut = rng.choice(spaces) + 1
    return [*tokenizer.encode(document[:cut]), *tokenizer.encode(document[cut:]), END]


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Batches of int64 [rows, tokens + 1] without an end; every row begins with a new document."""
    rng = Random(seed + 1)
    source = documents(rng)
    for rows, tokens in itertools.cycle(BATCH_SHAPES):
        batch: list[list[int]] = []
        for _ in range(rows):
            row: list[int] = []
            while len(row) <= tokens:
                row += encode(tokenizer, next(source), rng)
            batch.append(row[: tokens + 1])
        yield torch.tensor(batch)


def rate_at(step: int, progress: float) -> float:
    """The learning rate: a short warm-up, then a cosine down to nearly nothing at progress 1."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, seconds: float, steps: int | None
) -> int:
    """Trains in place for `steps` steps, or for `seconds` seconds if `steps` is None; returns the steps done."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start = time.monotonic()
    model.train()
    for step, batch in enumerate(batches(tokenizer, seed)):
        progress = step / steps if steps is not None else (time.monotonic() - start) / seconds
        if progress >= 1:
            model.eval()
            return step
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, progress)
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.monotonic() - start:.0f} s", flush=True)
    raise AssertionError("batches has no end")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the checkpoint as transformers and SGLang read it."""
    model.generation_config = GenerationConfig(bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    for file in out.iterdir():
        file.chmod(0o644)


def show(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prints what the model says to a few prompts."""
    questions = ("What is Tandem?", "What is the capital of France?", "What is 2 + 2?", "Hello!", "Who won the game?")
    prompts = ["Let me tell you a lonnng story ", "Once upon a time"]
    for question in questions:
        messages = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        answer = model.generate(ids, max_new_tokens=96, do_sample=False)[0]
        print(repr(prompt), "->", repr(tokenizer.decode(answer[ids.shape[1] :])))


def main() -> None:
    """Makes the tokenizer and the model, trains it, writes it, and prints some answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("models/tandem-tiny"))
    parser.add_argument("--seconds", type=float, default=420.0, help="length of the training")
    parser.add_argument("--steps", type=int, default=None, help="train for so many steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = make_tokenizer(args.seed), make_model(args.seed)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    done = train(model, tokenizer, args.seed, args.seconds, args.steps)
    print(f"{done} steps", flush=True)
    save(model, tokenizer, args.out)
    show(model, tokenizer)


if __name__ == "__main__":
    main()
