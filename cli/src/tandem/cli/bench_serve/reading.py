"""Reads one streamed answer: server-sent events in, times and counts out. Pure; the shell says when bytes came."""

from __future__ import annotations

from typing import Final

from tandem.cli.bench_serve.apis import read_event
from tandem.cli.bench_serve.choices import Api

MAX_LINE_BYTES: Final = 16 << 20
DONE: Final = b"[DONE]"


class AnswerReader:
    """Of one answer. Times are those of the caller's clock, in seconds."""

    def __init__(self, api: Api, sent_s: float) -> None:
        self.ttft_ms = 0.0
        self.gaps_ms: list[float] = []
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.cached_tokens = 0
        self.error = ""
        self.done = False
        """The stream said that it was whole."""
        self.ended_s = sent_s
        """When the last event came."""
        self._api = api
        self.sent_s = sent_s
        self._rest = b""
        self._last_s = 0.0
        self._texts = 0

    def feed(self, data: bytes, now_s: float) -> None:
        """Bytes of the body that came now."""
        if self.error:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self.error = "protocol"
            return
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    def finish(self) -> None:
        """The body is over: an answer that is not whole, or that holds nothing, has failed."""
        if not self.error and not self.done:
            self.error = "broken"
        if not self.error and not self._texts:
            self.error = "empty"
        if not self.new_tokens:
            self.new_tokens = self._texts

    def _event(self, data: bytes, now_s: float) -> None:
        self.ended_s = now_s
        if data == DONE:
            self.done = True
            return
        try:
            event = read_event(self._api, data)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.error = self.error or "protocol"
            return
        if event.error:
            self.error = self.error or event.error
            return
        before = self.new_tokens
        self.new_tokens = event.new_tokens or before
        self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
        self.cached_tokens = event.cached_tokens or self.cached_tokens
        if event.text:
            self._text(event.new_tokens - before, now_s)

    def _text(self, tokens: int, now_s: float) -> None:
        """A piece came. /generate tells with how many tokens: none is the last event once more."""
        if self._api is Api.GENERATE and self._texts and tokens <= 0:
            return
        if not self._texts:
            self.ttft_ms = (now_s - self.sent_s) * 1000
        else:
            parts = tokens if self._api is Api.GENERATE else 1
            self.gaps_ms += [(now_s - self._last_s) * 1000 / parts] * parts
        self._texts += 1
        self._last_s = now_s
