"""Asks a gateway over HTTP: `tandem generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tandem.cli.authorities import trust, untrusted
from tandem.core.errors import ErrorReason, TandemError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how."""

    prompt: str
    max_tokens: int | None = None
    temperature: float | None = None
    chat: bool = False
    """True: as a user's message in the model's chat template; False: the bare text goes on."""
    model: str = ""
    """Empty: the first model that the gateway serves."""


class GatewayClient:
    """A gateway at a URL."""

    def __init__(self, url: str, api_key: str = "", ca_file: Path | None = None) -> None:
        """ca_file: see `authorities.trust`. Raises INVALID_ARGUMENT."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        # Nothing of this machine's proxy settings: a gateway is near.
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        believed = trust(self._url, ca_file) or False  # False: there is no TLS
        self._client = httpx.Client(
            base_url=self._url, headers=headers, timeout=timeout, trust_env=False, verify=believed
        )

    def ask(self, question: Question, *, stream: bool, show: Callable[[str], None]) -> None:
        """Asks, and hands the answer's text to `show`, as it comes or in one piece. Raises TandemError."""
        path = "/v1/chat/completions" if question.chat else "/v1/completions"
        with self._errors():
            body = self._body(question)
            if not stream:
                answer = self._client.post(path, json=body)
                _check(answer)
                show(_text(answer.json()["choices"][0]))
                return
            with self._client.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    for text in _event_text(line):
                        show(text)

    def first_model(self) -> str:
        """The first model that it serves. Raises TandemError."""
        with self._errors():
            return self._first_model()

    def _first_model(self) -> str:
        listed = self._client.get("/v1/models")
        _check(listed)
        model: str = listed.json()["data"][0]["id"]
        return model

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {"model": question.model or self._first_model()}
        if question.chat:
            body["messages"] = [{"role": "user", "content": question.prompt}]
        else:
            body["prompt"] = question.prompt
        chosen = {"max_tokens": question.max_tokens, "temperature": question.temperature}
        return body | {name: value for name, value in chosen.items() if value is not None}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            why = f"{error or type(error).__name__}{untrusted(error)}"
            raise TandemError(ErrorReason.NO_WORKER, f"the gateway at {self._url} can't be asked: {why}") from error
        except (ValueError, KeyError, IndexError) as error:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{self._url} does not answer like a gateway") from error

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()


def _check(answer: httpx.Response) -> None:
    if answer.is_error:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = answer.text[:500]
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"the gateway says {answer.status_code}: {message}")


def _text(choice: dict[str, Any]) -> str:
    for part in ("delta", "message"):
        if part in choice:
            return choice[part].get("content") or ""
    return choice.get("text") or ""


def _event_text(line: str) -> Iterator[str]:
    """Text of one line of a stream of server-sent events. Raises TandemError for an error event."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line[6:])
    if "error" in event:
        raise TandemError(ErrorReason.ENGINE_FAILED, f"the gateway says: {event['error']['message']}")
    yield from (_text(choice) for choice in event["choices"])
