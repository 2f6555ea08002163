"""Writes docs/api.md from the JSON schemas of the gateway's HTTP API: `python -m tools.api_doc`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import orjson

from tandem.gateway.api import openapi
from tandem.gateway.api.field_schemas import REFUSED, Schema
from tandem.gateway.api.not_served import NOT_SERVED
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.settings import GatewaySettings

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = ROOT / "docs" / "api.md"
INTRO: Final = """\
# HTTP API

What the gateway takes and what it refuses, field by field. The same is served as an OpenAPI document at
`GET /openapi.json`.

- Every error has OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. `param` names the field at fault,
  the message says what is allowed, `code` is a reason of [errors.md](errors.md). Those of `/v1/messages` have
  Anthropic's shape, `{"type": "error", "error": {...}}`, with the same fields.
- A field that is not listed is refused, with a hint where it looks like a typo. `null` counts as absent.
- Fields that are refused pass where their value asks for nothing, which the table gives.
- With keys ([security/access.md](security/access.md)) send `Authorization: Bearer <key>` or `x-api-key: <key>`.
- The header `X-Session-Id` names the session of a request, for policies that keep one on its worker
  ([routing.md](routing.md)).
- The header `X-Request-Timeout` gives a request that generates its time in seconds, `X-Request-Priority` its class:
  `high`, `normal` or `low` ([admission.md](admission.md)).
- 429 and 503 have the header `Retry-After`, in seconds. Where a key has limits per minute, answers have OpenAI's
  headers `x-ratelimit-limit-requests`, `x-ratelimit-remaining-tokens` and so on.
- Bounds that settings move are shown with their defaults: `TANDEM_GATEWAY_MAX_N`, `TANDEM_GATEWAY_MAX_BATCH`,
  `TANDEM_GATEWAY_MAX_TOKENIZE_SIZE`; a body has `TANDEM_GATEWAY_MAX_BODY_BYTES` at most ([settings.md](settings.md)).
- `n` answers and prompts of a list are rooms of their own: they are streamed as they come, each with its `index`; their
  tokens are summed, each prompt's once. If one fails, the request fails with its error, and the others are ended.
- What `tools` and reasoning need and do: [tools.md](tools.md).
- `/v1/responses` keeps answers in the memory of its gateway, the last `TANDEM_GATEWAY_KEPT_RESPONSES` within
  `TANDEM_GATEWAY_KEPT_RESPONSES_BYTES` and `TANDEM_GATEWAY_KEPT_RESPONSES_AGE_S`, unless `store` is false. They end
  with the process, and other gateways do not know them. Only the key that an answer was asked for with can read, delete
  and go on from it.
- The mock engine has no grammars, penalties and biases: a request with one fails with 501.

Written by `python -m tools.api_doc` from the schemas of `gateway/api/field_schemas.py`; tests hold those against what
the endpoints take, value by value.
"""
NAME: Final = re.compile(r"'([\w.]+)'")
"""How errors name a field."""
NOT_OFFERED: Final = """\
## Not offered

These answer 501 with the code `not_supported`, whatever the method. Any other path answers 404 and lists those that
there are.
"""


def limits() -> SchemaLimits:
    """Those of the default settings."""
    fields = GatewaySettings.model_fields
    return SchemaLimits(*(fields[name].default for name in ("max_n", "max_batch", "max_tokenize_size")))


def cell(text: str) -> str:
    """Text for a cell of a table: names of fields in code spans."""
    return NAME.sub(r"`\1`", text).replace("|", "\\|")


def values(schema: Schema) -> str:
    """What a field takes, for people; null aside."""
    if REFUSED in schema:
        return ", ".join(f"`{orjson.dumps(one).decode()}`" for one in schema["enum"] if one is not None)
    if "anyOf" in schema:
        return ", or ".join(filter(None, map(values, schema["anyOf"])))
    if "const" in schema:
        return str(schema["const"])
    kinds = schema.get("type", [])
    [kind, *_] = [kinds] if isinstance(kinds, str) else [*kinds, ""]
    return schema.get("title") or DESCRIBE[kind](schema)


def span(schema: Schema) -> str:
    """The range of a number."""
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']}, at most {schema['maximum']}"
    return f"{schema['minimum']}..{schema['maximum']}"


def text(schema: Schema) -> str:
    """The length of a text."""
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    return f"text of {low}..{high} characters" if high else "text"


def items(schema: Schema) -> str:
    """A list, and how long it may be."""
    high = schema.get("maxItems")
    return f"list of {values(schema['items'])}" + (f", at most {high}" if high else "")


DESCRIBE: Final[dict[str, Callable[[Schema], str]]] = {
    "": lambda schema: "any",
    "null": lambda schema: "",
    "boolean": lambda schema: "true, false",
    "integer": span,
    "number": span,
    "string": text,
    "object": lambda schema: "object",
    "array": items,
}


def rows(schema: Schema) -> Iterator[str]:
    """One row for each field of a body: those that are taken, then those that are refused."""
    for name, one in schema["properties"].items():
        word = "refused" if REFUSED in one else "taken"
        passing = values(one)
        allowed = f"only {passing} passes" if REFUSED in one and passing else passing
        yield f"| `{name}` | {word} | {cell(allowed)} | {cell(one['description'])} |\n"


def section(title: str, schema: Schema) -> Iterator[str]:
    """The table of one body."""
    yield f"\n## {title}\n\n| parameter | | values | meaning, or what to do instead |\n|---|---|---|---|\n"
    yield from rows(schema)


def document() -> str:
    """The whole page."""
    parts = [INTRO]
    for path, schema in openapi.bodies(limits()).items():
        parts += section(f"POST {path}", schema)
        if (nested := schema["properties"].get("sampling_params")) is not None:
            parts += section(f"sampling_params of {path}", nested["anyOf"][0])
    parts.append("\n## GET\n\n| path | answers |\n|---|---|\n")
    parts += [f"| `{path}` | {cell(summary)} |\n" for path, summary in openapi.READ.items()]
    parts.append("\n## Answers that are kept\n\n| method | path | |\n|---|---|---|\n")
    for path, methods in openapi.KEPT.items():
        parts += [f"| {method.upper()} | `{path}` | {cell(summary)} |\n" for method, summary in methods.items()]
    parts.append(f"\n{NOT_OFFERED}\n| path | why |\n|---|---|\n")
    parts += [f"| `{path}` | {cell(why)} |\n" for path, why in NOT_SERVED.items()]
    return "".join(parts)


def main() -> None:
    """Writes the page. That it is up to date is checked by tests/unit/docs."""
    DOCUMENT.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
