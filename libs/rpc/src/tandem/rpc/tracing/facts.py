"""What a waterfall says beside a bar: the few attributes of a span that are most worth to know, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tandem.rpc.tracing.layout import ShownSpan, Value


def size_text(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


_FACTS: Final[tuple[tuple[str, Callable[[Value], str]], ...]] = (
    ("error.type", str),
    ("http.response.status_code", lambda value: f"HTTP {value}"),
    ("tandem.attempt", lambda value: f"#{value}"),
    ("tandem.outcome", str),
    ("tandem.decode.worker", lambda value: str(value).partition("@")[0]),
    ("tandem.prefill.worker", lambda value: str(value).partition("@")[0]),
    ("tandem.unified.worker", lambda value: str(value).partition("@")[0]),
    ("tandem.chunk", lambda value: f"#{value}"),
    ("tandem.pages", lambda value: f"{value} pages"),
    ("tandem.prefix_tokens", lambda value: f"held {value} tokens"),
    ("tandem.bytes", lambda value: size_text(float(value))),
    ("tandem.gb_per_s", lambda value: f"{value} GB/s"),
    ("tandem.provider", str),
    ("tandem.buffers", lambda value: f"{value} buffers"),
    ("tandem.first_token.source", lambda value: f"of {value}"),
    ("gen_ai.request.model", str),
    ("gen_ai.usage.input_tokens", lambda value: f"in {value}"),
    ("gen_ai.usage.output_tokens", lambda value: f"out {value}"),
    ("tandem.resumed_tokens", lambda value: f"resumed {value}"),
    ("tandem.rank", str),
)
"""What is said of a span, in this order."""


def facts(span: ShownSpan) -> str:
    """What is most worth to know of a span, in words."""
    found: list[str] = []
    for name, show in _FACTS:
        text = show(span.attributes[name]) if name in span.attributes else ""
        if text and text not in found:
            found.append(text)
    if span.failed and span.message:
        found.append(f"({span.message})")
    return "  ".join(found)
