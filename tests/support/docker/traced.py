"""One request to a stack, and its trace as the command `tandem` in its container tells it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence

import httpx

from tests.support.docker.cluster import Cluster
from tests.support.system.asking import body
from tests.support.tracing.whole import check_answered

PATH = "/generate"


async def check_trace(cluster: Cluster, client: httpx.AsyncClient, prompt: Sequence[int], new_tokens: int) -> None:
    """Asks a stack with one worker of each role, and fails if anything is missing in the trace.

    client: of the gateway.
    """
    workers = set(await cluster.members(2))
    request_id = f"traced-{secrets.token_hex(4)}"
    request = body(prompt, new_tokens, ignore_eos=True)
    response = await client.post(PATH, json=request, headers={"X-Request-Id": request_id})
    assert (response.status_code, response.headers["X-Request-Id"]) == (200, request_id), response.text
    await cluster.wait_trace(request_id)
    told = json.loads(await asyncio.to_thread(cluster.stack.command, "trace", request_id, "--json"))
    assert told["trace_id"] == response.headers["traceparent"].split("-")[1]
    sizes = {"prompt_tokens": len(prompt), "new_tokens": new_tokens}
    check_answered(told, path=PATH, workers=workers, provider="tcp", **sizes)
