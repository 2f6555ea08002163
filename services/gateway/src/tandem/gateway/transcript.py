"""What has come of one sequence so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.gateway.calls import Sequence
from tandem.gateway.so_far import SoFar
from tandem.v1 import session_pb2


@dataclass(slots=True)
class Transcript:
    """Collects the deltas of one sequence."""

    sequence: Sequence
    so_far: SoFar = field(default_factory=SoFar)
    logprobs: list[session_pb2.TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[session_pb2.TokenLogprob] = field(default_factory=list)
    finish: session_pb2.Finish | None = None

    def clear(self) -> None:
        """Forgets all of it."""
        self.so_far.clear()
        self.logprobs.clear()
        self.prompt_logprobs.clear()

    def add(self, delta: session_pb2.Delta) -> None:
        """Takes one delta."""
        self.so_far.add(delta)
        if self.sequence.item.logprobs is not None:
            self.logprobs.extend(delta.logprobs)
            self.prompt_logprobs.extend(delta.prompt_logprobs)
        if delta.HasField("finish"):
            self.finish = delta.finish

    @property
    def text(self) -> str:
        """Its text so far."""
        return self.so_far.text

    @property
    def token_ids(self) -> list[int]:
        """Its tokens so far."""
        return self.so_far.tokens.tolist()

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word for how it ended; None while it goes on."""
        if self.finish is None:
            return None
        return "length" if self.finish.kind == session_pb2.FINISH_KIND_LENGTH else "stop"

    @property
    def matched_stop(self) -> int | str | None:
        """The token or text that ended it, where one did."""
        if self.finish is None:
            return None
        return (
            self.finish.matched_token_id
            if self.finish.HasField("matched_token_id")
            else self.finish.matched_text or None
        )

    @property
    def completion_tokens(self) -> int:
        """New tokens so far."""
        return len(self.so_far.tokens)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed anew; known at the end."""
        return 0 if self.finish is None else self.finish.cached_tokens
