"""When a trace has all its spans, and what has to be in that of a request which was answered."""

from __future__ import annotations

from typing import Any, Final

from tandem.cli.trace import Trace

SERVICES: Final = {"tandem-gateway", "tandem-prefill", "tandem-decode"}
LEGS: Final = {"prefill", "decode"}
STEPS: Final = {
    *("read", "tokenize", "route", "attempt", "first_token", "stream"),
    *("prefill", "ticket", "grant_wait", "compute", "chunk", "landing"),
    *("decode", "link_wait", "reserve", "receive", "close", "decode_queue", "generate"),
}
"""Of a request that was answered at its first attempt. An engine that begins before the grant is there has no queue."""


def is_settled(trace: Trace) -> bool:
    """Whether no worker is silent, no span runs, and each leg has its ranks' spans, which may come after its end."""
    told = {span.parent_id for span in trace.spans if "tandem.rank" in span.attributes}
    legs = {span.span_id for span in trace.spans if span.name in LEGS}
    return not trace.silent and legs <= told and all(span.end_ns for span in trace.spans)


def check_answered(
    told: dict[str, Any], *, path: str, workers: set[str], provider: str, prompt_tokens: int, new_tokens: int
) -> None:
    """What `tandem trace --json` tells of a request with one prompt: every step of every service, and all its KV.

    workers: ids of the pair that answered.
    """
    spans = told["spans"]
    by_id = {span["span_id"]: span for span in spans}
    names = {span["name"] for span in spans}
    services = {span["service"] for span in spans}
    assert (told["silent"], told["dropped_spans"]) == ({}, 0), (told["silent"], told["dropped_spans"])
    assert services == SERVICES, services
    instances = {span["instance"] for span in spans if span["service"] != "tandem-gateway"}
    assert instances == workers, instances
    assert names - {"queue"} == STEPS | {f"POST {path}"}, names
    bad = [span for span in spans if span["failed"] or span["end_unix_ns"] < span["start_unix_ns"]]
    assert not bad, bad
    roots = [span["name"] for span in spans if span["parent_span_id"] not in by_id]
    assert roots == [f"POST {path}"], roots
    above = {span["name"]: by_id[span["parent_span_id"]]["name"] for span in spans if span["parent_span_id"] in by_id}
    wanted = {"prefill": "attempt", "decode": "attempt", "chunk": "prefill", "receive": "decode"}
    assert above.items() >= wanted.items(), above
    (attempt, decode, receive) = (_only(spans, name) for name in ("attempt", "decode", "receive"))
    assert attempt["attributes"]["gen_ai.usage.input_tokens"] == prompt_tokens, attempt
    assert decode["attributes"]["gen_ai.usage.output_tokens"] == new_tokens, decode
    chunks = [span["attributes"] for span in spans if span["name"] == "chunk"]
    assert {chunk["tandem.provider"] for chunk in chunks} == {provider}, chunks
    for name in ("tandem.pages", "tandem.bytes"):
        assert sum(chunk[name] for chunk in chunks) == receive["attributes"][name] > 0, (receive, chunks)
    assert [event["name"] for event in receive["events"]] == ["landed"] * len(chunks), (receive, chunks)


def _only(spans: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = [span for span in spans if span["name"] == name]
    assert len(found) == 1, found
    return found[0]
