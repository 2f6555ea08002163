"""Turns prompts into token ids, once per request, and ids into text, without ever holding up the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import orjson

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.calls import ChatPrompt, IdsPrompt, Message, Prompt, TextPrompt

INLINE_SIZE: Final = 1000
"""Texts and tokens up to this many are turned where they are: that takes less time than handing them to a thread."""
TEXT_CACHE: Final = 65_536
"""Tokens whose text is remembered, for log probabilities."""

T = TypeVar("T")
R = TypeVar("R")


class Encoder(Protocol):
    """The part of a model's tokenizer that is used here; safe to call from several threads."""

    @property
    def vocabulary(self) -> int:
        """Token ids are 0..vocabulary-1."""

    def render(self, prompt: ChatPrompt) -> str:
        """A chat as the model's template writes it. Raises TandemError(INVALID_ARGUMENT) if the template refuses."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def token_text(self, token_id: int) -> str:
        """Text of one token; a lone part of a character becomes U+FFFD."""

    def text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of tokens, with or without special ones."""


class HuggingFaceEncoder:
    """The tokenizer of a Hugging Face model directory or id."""

    def __init__(self, model_path: str) -> None:
        # Imported here: it takes a second, which a process that only checks its settings need not wait for.
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        except (OSError, ValueError) as error:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"No tokenizer can be loaded from {model_path!r}: {error}"
            ) from None
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"The model {model_path!r} has no tokenizer.json")
        # The Rust tokenizer itself is called: it lets go of the interpreter's lock, and unlike its Python wrapper
        # it changes none of its own settings from call to call, which would not be safe from several threads.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.token_text: Callable[[int], str] = functools.lru_cache(TEXT_CACHE)(self._token_text)

    @property
    def tokenizer(self) -> Any:
        """What transformers loaded."""
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """Token ids are 0..vocabulary-1."""
        return len(self._tokenizer)

    def render(self, prompt: ChatPrompt) -> str:
        """A chat as the model's template writes it."""
        # Jinja is what the template runs in, and what its errors come from.
        from jinja2 import TemplateError

        messages = [_message_of(message) for message in prompt.messages]
        tools = [orjson.loads(tool.document) for tool in prompt.tools]
        # Some templates want tools without the wrapper that OpenAI's API has around them.
        forms = [tools, [tool["function"] for tool in tools]] if tools else [None]
        for place, form in enumerate(forms):
            try:
                return str(
                    self._tokenizer.apply_chat_template(
                        messages,
                        tools=form,
                        tokenize=False,
                        add_generation_prompt=not prompt.continue_last,
                        continue_final_message=prompt.continue_last,
                        **dict(prompt.template_options),
                    )
                )
            except (TemplateError, TypeError, ValueError) as error:
                if place + 1 == len(forms):
                    raise TandemError(
                        ErrorReason.INVALID_ARGUMENT,
                        f"The model's chat template does not take these messages: {error}",
                        field="messages",
                    ) from None
        raise AssertionError("there is no form")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        [encoding] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _token_text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))


def _message_of(message: Message) -> dict[str, Any]:
    """A message as chat templates know it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        found["reasoning_content"] = message.reasoning
    if message.call_id:
        found["tool_call_id"] = message.call_id
    if message.calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": orjson.loads(call.arguments)},
            }
            for call in message.calls
        ]
    return found


class PromptTokenizer:
    """A model's tokenizer: what is short is done at once, what is long in a thread."""

    def __init__(self, encoder: Encoder, *, threads: int = 2) -> None:
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def ids(self, prompt: Prompt, field: str) -> tuple[int, ...]:
        """Token ids of a prompt.

        Raises TandemError(INVALID_ARGUMENT) if a given id is outside the vocabulary, or if a text has no token.
        """
        if isinstance(prompt, IdsPrompt):
            self.require_known(prompt.ids, field)
            return prompt.ids
        found = await self.encode(prompt)
        if not found:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"'{field}' holds no token. Give some text.", field=field)
        return tuple(found)

    async def encode(self, prompt: ChatPrompt | TextPrompt) -> list[int]:
        """Token ids of a chat or a text; there may be none."""
        if isinstance(prompt, ChatPrompt):
            return await self._run(prompt.characters, self._chat_ids, prompt)
        return await self._run(len(prompt.text), self._text_ids, prompt)

    async def text(self, ids: tuple[int, ...], field: str, *, skip_special_tokens: bool) -> str:
        """Text of tokens. Raises TandemError(INVALID_ARGUMENT) if one is outside the vocabulary."""
        self.require_known(ids, field)
        return await self._run(len(ids), partial(self.encoder.text, skip_special_tokens=skip_special_tokens), ids)

    def require_known(self, ids: Iterable[int], field: str) -> None:
        """Raises TandemError(INVALID_ARGUMENT) if a token is outside the vocabulary."""
        if (largest := max(ids, default=0)) >= self.encoder.vocabulary:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"'{field}' holds the token {largest}; this model's tokens are 0..{self.encoder.vocabulary - 1}.",
                field=field,
            )

    def close(self) -> None:
        """Lets the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _chat_ids(self, prompt: ChatPrompt) -> list[int]:
        # The template writes the special tokens itself.
        return self.encoder.encode(self.encoder.render(prompt), add_special_tokens=False)

    def _text_ids(self, prompt: TextPrompt) -> list[int]:
        return self.encoder.encode(prompt.text, add_special_tokens=prompt.special_tokens)

    async def _run(self, size: int, work: Callable[[T], R], given: T) -> R:
        """size: characters or tokens."""
        if size <= INLINE_SIZE:
            return work(given)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, given)
