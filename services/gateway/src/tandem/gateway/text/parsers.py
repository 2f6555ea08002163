"""Loads what takes answers apart, where the settings ask for it."""

from __future__ import annotations

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.text.speech import Parsers
from tandem.gateway.text.tokenizer import HuggingFaceEncoder


def load_parsers(settings: GatewaySettings, encoder: HuggingFaceEncoder) -> Parsers | None:
    """The parsers that the settings name; None if they name none. Raises TandemError if they can't be had."""
    if not settings.tool_call_parser and not settings.reasoning_parser:
        return None
    try:
        # Imported here: it takes seconds, and SGLang need not be installed.
        from tandem.gateway.text.sglang_parsers import SglangParsers
    except ImportError as error:
        raise TandemError(
            ErrorReason.NOT_SUPPORTED,
            "TANDEM_GATEWAY_TOOL_CALL_PARSER and TANDEM_GATEWAY_REASONING_PARSER need SGLang where the gateway runs,"
            f" and it can't be imported: {error}",
        ) from None
    return SglangParsers(settings.tool_call_parser, settings.reasoning_parser, encoder.tokenizer)
