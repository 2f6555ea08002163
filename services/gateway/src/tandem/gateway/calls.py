"""What a client wants, in one form whatever the API it came in by. Nothing here knows HTTP or gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from tandem.core.fair_queue import Priority
from tandem.gateway.text.speech import Hearing, TemplateOptions
from tandem.gateway.text.tools import Tool, ToolCall
from tandem.v1 import session_pb2


class Api(Enum):
    """Which API a call came in by; it decides the shape of the answer."""

    CHAT = "chat"
    COMPLETION = "completion"
    GENERATE = "generate"
    MESSAGES = "messages"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    """Of the role "assistant": the tools that it called."""
    call_id: str = ""
    """Of the role "tool": the call that it answers."""
    reasoning: str = ""
    """Of the role "assistant": what it thought before."""

    @property
    def characters(self) -> int:
        """Length of all of it."""
        return len(self.content) + len(self.reasoning) + sum(len(call.arguments) for call in self.calls)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat, for the model's own template."""

    messages: tuple[Message, ...]
    template_options: TemplateOptions = ()
    continue_last: bool = False
    """True: the answer goes on with the last message instead of starting a new one."""
    tools: tuple[Tool, ...] = ()
    """Those that the model is told of."""

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        return sum(len(message.calls) for message in self.messages)

    @property
    def characters(self) -> int:
        """Length of all messages and tools."""
        tools = sum(len(tool.document) for tool in self.tools)
        return tools + sum(message.characters for message in self.messages)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text."""

    text: str
    special_tokens: bool = True
    """Whether the tokenizer adds what a text begins or ends with, e.g. a token for its beginning."""


@dataclass(frozen=True, slots=True)
class IdsPrompt:
    """Text that the client tokenized."""

    ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | IdsPrompt


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and how to answer it."""

    prompt: Prompt
    field: str
    """Name of the request field that holds the prompt, for errors."""
    sampling: session_pb2.Sampling
    """Never changed once it is in an Item. `max_new_tokens` is 0 where the client named none."""
    default_new_tokens: int = 0
    """Taken where the client named none, as far as the context allows; 0 = the gateway's default."""
    n: int = 1
    """Answers wanted."""
    logprobs: session_pb2.LogprobOptions | None = None
    with_logprob_text: bool = False
    """/generate: put each token's text into its log probability."""
    echo: bool = False
    """/v1/completions: the answer begins with the prompt."""
    rid: str = ""
    """/generate: the client's own name of this prompt."""


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """/v1/responses: what the answer needs to know of its request."""

    id: str
    """Of the answer: long and random, as who knows it may read the answer."""
    messages: tuple[Message, ...]
    """The chat so far, without instructions, which hold for one answer only."""
    echo: Mapping[str, Any]
    """Fields that the answer says again."""
    keep: bool
    """Whether the answer is kept."""
    previous_id: str = ""
    """The answer that this one goes on from, until its chat is found; empty if there is none."""
    owner: str = ""
    """Name of the key that it came with: no other may read the answer."""


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One request of a client, checked."""

    api: Api
    model: str
    """As the client wrote it; empty = the one that is served."""
    items: tuple[Item, ...]
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    """Whether every event of a stream has the token counts so far."""
    session: str = ""
    """What the body names the session by; empty if it does not."""
    plan: ResponsePlan | None = None
    """Of /v1/responses."""
    hearing: Hearing | None = None
    """How answers are taken apart; None: they are text."""
    priority: Priority | None = None
    """The class that the body asks for."""
    single: bool = True
    """/generate: False if the answer is a list even where it holds one element."""

    @property
    def sequences(self) -> int:
        """Sequences that the call is split into."""
        return sum(item.n for item in self.items)


class Texts(Protocol):
    """Turns a model's tokens into text."""

    def token_text(self, token_id: int) -> str:
        """Text of one token; a lone part of a character becomes U+FFFD."""

    def text(self, ids: SequenceOf[int], skip_special_tokens: bool) -> str:
        """Text of tokens, with or without special ones."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One answer to be generated."""

    index: int
    """Place among the call's sequences, prompt by prompt."""
    item: Item
    choice: int
    """Which of the item's `n` answers this is, from 0."""
    model: str
    input_ids: tuple[int, ...]
    sampling: session_pb2.Sampling
    """The item's, with `max_new_tokens` settled and a seed of its own."""
    texts: Texts
    """Of the model."""
    echo: str = ""
    """What the answer begins with: the prompt's text, if it is to be said again."""
    streamed: bool = False
    """Whether the client sees the answer as it comes."""
    early_first_token: bool = False
    """Whether prefill is to say the first token ahead of decode; see tandem.gateway.routing.first_token."""
