"""docs/tracing.md names every span and every attribute, and no others."""

from __future__ import annotations

from tandem.core.ids import Role
from tandem.rpc.tracing import names
from tests.support.tracing.page import RANKS, REQUEST, attributes, spans

NAMES = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
ATTRIBUTES = {name for name in NAMES if "." in name}


def test_every_span_is_on_the_page() -> None:
    assert spans() == {REQUEST} | RANKS | {role.value for role in Role} | (NAMES - ATTRIBUTES)


def test_every_attribute_is_on_the_page() -> None:
    assert set(attributes()) == ATTRIBUTES


def test_attributes_are_on_spans_that_there_are() -> None:
    assert set().union(*attributes().values()) <= spans() | {"RPC"}
