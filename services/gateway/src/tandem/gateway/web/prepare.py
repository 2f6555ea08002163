"""From a checked call to sequences: the model is known, every prompt is tokenized, every length fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api.sampling import MAX_SEED
from tandem.gateway.calls import GenerateCall, Item, Sequence, TextPrompt
from tandem.gateway.routing.first_token import comes_early
from tandem.gateway.text.tokenizer import PromptTokenizer
from tandem.gateway.text.tokenizers import TokenizersOf
from tandem.v1 import session_pb2


class ModelFacts(Protocol):
    """What the cluster says of models; see tandem.gateway.routing.pool.SessionPool."""

    def models(self) -> tuple[str, ...]:
        """Every model that some worker serves."""

    def context_tokens(self, model: str) -> int:
        """Longest prompt plus answer, in tokens; 0 if nobody serves the model."""

    def gone_lately(self, model: str) -> bool:
        """Whether the last worker of a model went a short while ago, so that it may come back."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that clients may name."""

    facts: ModelFacts
    fallback: str
    """Shown while no worker is there."""
    only: str = ""
    """The only model to serve; empty = all."""
    named: frozenset[str] = frozenset()
    """Models that the settings name: they exist, even while nobody serves them."""

    def names(self) -> tuple[str, ...]:
        """The models that are served, in order of name."""
        if self.only:
            return (self.only,)
        return self.facts.models() or (self.fallback,)

    def resolve(self, wanted: str) -> str:
        """The model a client means; the only one where it names none. Raises UNKNOWN_MODEL, INVALID_ARGUMENT."""
        names = self.names()
        listed = ", ".join(names)
        if not wanted and len(names) > 1:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"'model' is missing. Name one of: {listed}.", field="model"
            )
        if wanted and wanted not in names and not self._is_away(wanted):
            raise TandemError(
                ErrorReason.UNKNOWN_MODEL,
                f"The model {wanted[:100]!r} does not exist here. There is: {listed}.",
                field="model",
            )
        return wanted or names[0]

    def _is_away(self, model: str) -> bool:
        """Whether a model exists that nobody serves at the moment: clients should come back, not give up."""
        return not self.only and (model in self.named or self.facts.gone_lately(model))


class Preparer:
    """Prepares calls."""

    def __init__(self, catalog: Catalog, tokenizers: TokenizersOf, *, default_max_tokens: int) -> None:
        self._catalog = catalog
        self._tokenizers = tokenizers
        self._default_max_tokens = default_max_tokens

    async def prepare(self, call: GenerateCall) -> tuple[Sequence, ...]:
        """Splits a call into its sequences. Raises TandemError for what does not fit, naming the field."""
        model = self._catalog.resolve(call.model)
        context = self._catalog.facts.context_tokens(model)
        if not context:
            raise TandemError(ErrorReason.NO_WORKER, f"No worker serves {model!r} at the moment. Try again soon.")
        tokenizer = await self._tokenizers.of(model)
        texts = tokenizer.encoder
        sequences: list[Sequence] = []
        for item in call.items:
            ids = await tokenizer.ids(item.prompt, item.field)
            tokenizer.require_known(item.sampling.logit_bias, "logit_bias")
            sampling = session_pb2.Sampling()
            sampling.CopyFrom(item.sampling)
            sampling.max_new_tokens = self._new_tokens(item, len(ids), context)
            early = comes_early(sampling, item.logprobs, stream=call.stream)
            echo = await _echo(item, ids, tokenizer)
            for choice in range(item.n):
                own = _own_seed(sampling, choice)
                place = len(sequences)
                sequences.append(Sequence(place, item, choice, model, ids, own, texts, echo, call.stream, early))
        return tuple(sequences)

    def _new_tokens(self, item: Item, prompt_tokens: int, context: int) -> int:
        """Tokens to generate at most."""
        left = context - prompt_tokens
        if left < 1:
            raise TandemError(
                ErrorReason.CONTEXT_TOO_LONG,
                f"'{item.field}' has {prompt_tokens} tokens; the model's context takes {context}, the answer's"
                f" first token included. Shorten it to at most {context - 1} tokens.",
                field=item.field,
            )
        asked = item.sampling.max_new_tokens
        if asked > left:
            raise TandemError(
                ErrorReason.CONTEXT_TOO_LONG,
                f"'{item.field}' has {prompt_tokens} tokens and {asked} new ones are asked for; the model's"
                f" context takes {context} together. Ask for at most {left} new tokens, or shorten the prompt.",
                field=item.field,
            )
        return asked or min(left, item.default_new_tokens or self._default_max_tokens)


async def _echo(item: Item, ids: tuple[int, ...], tokenizer: PromptTokenizer) -> str:
    """The prompt's text, where the answer is to begin with it."""
    if not item.echo:
        return ""
    if isinstance(item.prompt, TextPrompt):
        return item.prompt.text
    return await tokenizer.text(ids, item.field, skip_special_tokens=item.sampling.skip_special_tokens)


def _own_seed(sampling: session_pb2.Sampling, choice: int) -> session_pb2.Sampling:
    """A seed repeats the whole request, but its `n` answers must differ from each other."""
    if choice == 0 or not sampling.HasField("seed"):
        return sampling
    own = session_pb2.Sampling()
    own.CopyFrom(sampling)
    own.seed = (sampling.seed + choice) % (MAX_SEED + 1)
    return own
