"""The HTTP API keeps to its OpenAPI document: schemathesis asks a running system, by a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from schemathesis import GenerationMode

from tandem.gateway.api import openapi
from tandem.gateway.api.openai_schema import SchemaLimits
from tests.support.system.contract import operations, try_operation
from tests.support.system.system import System, running_system

PATHS = openapi.document(SchemaLimits(max_n=3, max_batch=3))["paths"].keys()
POSTS = sorted(PATHS - openapi.READ.keys() - openapi.KEPT.keys())
SMALL = {"DEFAULT_MAX_TOKENS": 8, "MAX_N": 3, "MAX_BATCH": 3}
EXAMPLES = 4
MANY = 250


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that answers briefly."""
    env = [part for name, value in SMALL.items() for part in ("--env", f"gateway:TANDEM_GATEWAY_{name}={value}")]
    context = ("--engine-arg", "context_tokens=256")
    with running_system(tmp_path_factory.mktemp("contract"), "--engine", "mock", *context, *env) as found:
        yield found


def check(system: System, path: str, mode: GenerationMode, examples: int) -> None:
    """Tries one endpoint; of many good requests some are answered, and of bad ones none."""
    (operation,) = [one for one in operations(system.url) if one.path == path]
    tried = try_operation(operation, mode, examples, "tandem-tiny")
    print(path, mode.value, dict(tried.statuses))  # pytest shows it with a failure, and with -s
    if mode is GenerationMode.NEGATIVE:
        assert tried.statuses[200] == 0
    elif examples == MANY:
        assert tried.statuses[200] > 0
    if path in POSTS:
        assert tried.requests >= examples


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("path", POSTS)
def test_an_endpoint_with_a_body(system: System, path: str, mode: GenerationMode) -> None:
    check(system, path, mode, EXAMPLES)


@pytest.mark.parametrize("path", sorted(openapi.READ.keys() - {"/openapi.json"}))
def test_an_endpoint_that_is_read(system: System, path: str) -> None:
    check(system, path, GenerationMode.POSITIVE, EXAMPLES)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("path", POSTS)
def test_many_requests_to_an_endpoint(system: System, path: str, mode: GenerationMode) -> None:
    check(system, path, mode, MANY)
