"""`tandem bench serve` as a process, against a system with the mock engine and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.client import ask, resolved, target_of
from tandem.cli.bench_serve.document import from_json
from tandem.core.errors import ErrorReason, TandemError
from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import hand_over
from tests.support.settings import environment
from tests.support.system.inside import Inside, system_inside

pytestmark = pytest.mark.timeout(120)
WAIT_S = 90
TRACE = (
    '{"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]}\n'
    '{"timestamp": 100, "input_length": 700, "output_length": 5, "hash_ids": [1, 3]}\n'
    '{"timestamp": 9000000, "input_length": 7, "output_length": 5, "hash_ids": [9]}\n'
)


@pytest.fixture
async def system() -> AsyncIterator[Inside]:
    async with system_inside() as running:
        yield running


async def bench(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `tandem bench`; this loop, on which the system runs, goes on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.cli", "bench", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(TANDEM_CLI_API_KEY="open sesame", COLUMNS="200"),
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    return process.returncode or 0, out.decode(), err.decode()


async def test_results_reports_and_a_comparison(system: Inside, tmp_path: Path) -> None:
    url = f"http://{system.gateway.http_address}"
    first, second, report = (tmp_path / name for name in ("a.json", "b.json", "report.html"))
    common = ("serve", "--url", url, "--rate", "50", "--requests", "12", "--prompt-tokens", "20", "--new-tokens", "6")
    code, out, err = await bench(*common, "--repeats", "2", "--out", str(first), "--html", str(report))
    assert code == 0, err
    assert "24 of 24" in out
    made = from_json(first.read_text(), "a")
    assert made.target["model"] == "tandem-tiny"
    for summary, rows in zip(made.summaries, made.requests, strict=True):
        assert summary["answered"] == 12
        assert rows["new_tokens"] == [6] * 12
        assert rows["prompt_tokens"] == [20] * 12
        assert min(rows["ttft_ms"]) > 0
        assert all(e2e >= ttft for e2e, ttft in zip(rows["e2e_ms"], rows["ttft_ms"], strict=True))
    assert report.read_text().startswith("<!doctype html>")

    code, _, err = await bench(*common, "--repeats", "2", "--out", str(second))
    assert code == 0, err
    assert from_json(second.read_text(), "b").requests[0]["at_s"] == made.requests[0]["at_s"], "same seed, same times"
    code, out, err = await bench("compare", str(first), str(second), "--json")
    assert code == 0, err
    compared = json.loads(out)
    assert compared["differences"] == []
    assert compared["numbers"]["ttft_ms.p50"]["method"] == "t over repeats"


@pytest.mark.parametrize("api", ["chat", "generate"])
async def test_a_conversation_over_each_api(system: Inside, api: str) -> None:
    url = f"http://{system.gateway.http_address}/v1"
    words = ("serve", "--url", url, "--api", api, "--workload", "chat", "--prompt-tokens", "6", "--new-tokens", "3")
    code, out, err = await bench(*words, "--requests", "10", "--rate", "inf", "--json", "--warm-up", "0")
    assert code == 0, err
    summary = json.loads(out)["repeats"][0]["summary"]
    assert (summary["answered"], summary["errors"]) == (10, {})


async def test_turns_of_a_conversation_meet_one_prefill_worker_as_they_name_it() -> None:
    """By `consistent_hash`, which goes by the name. All prompts begin with the same 256 tokens."""
    async with cluster([hand_over] * 3, prefill_policy="consistent_hash", load_cap=100) as here:
        url = f"http://{here.gateway.http_address}"
        words = (
            "serve",
            "--url",
            url,
            "--workload",
            "chat",
            "--prompt-tokens",
            "6",
            "--new-tokens",
            "3",
            "--spread",
            "0",
        )

        async def homes(*more: str) -> dict[tuple[int, ...], set[str]]:
            """By the first words of each conversation, the prefill workers that had turns of it."""
            code, _, err = await bench(*words, *more, "--requests", "150", "--rate", "inf", "--warm-up", "0")
            assert code == 0, err
            found: dict[tuple[int, ...], set[str]] = {}
            for worker in here.prefills:
                for submit in worker.submits:
                    found.setdefault(tuple(submit.input_ids[256:262]), set()).add(worker.worker_id)
                worker.submits.clear()
            return found

        named, unnamed = await homes(), await homes("--no-sessions")
    assert named.keys() == unnamed.keys()
    assert {len(workers) for workers in named.values()} == {1}
    assert set().union(*named.values()) == {"p0", "p1", "p2"}
    assert max(len(workers) for workers in unnamed.values()) > 1


async def test_a_trace_is_replayed_within_its_limits(system: Inside, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(TRACE)
    url = f"http://{system.gateway.http_address}"
    code, out, err = await bench("serve", "--url", url, "--trace", str(trace), "--duration-s", "5", "--json")
    assert code == 0, err
    repeat = json.loads(out)["repeats"][0]
    assert repeat["requests"]["at_s"] == [0.0, 0.1]
    assert repeat["requests"]["prompt_tokens"] == [600, 700]
    assert repeat["requests"]["new_tokens"] == [4, 5]
    assert repeat["client"]["left_out"] == 1


async def test_refused_requests_are_counted_by_reason(system: Inside) -> None:
    url = f"http://{system.gateway.http_address}"
    words = ("serve", "--url", url, "--requests", "3", "--rate", "inf", "--warm-up", "0", "--json")
    code, out, _ = await bench(*words, "--prompt-tokens", "9000")
    assert code == 1, "nothing was answered"
    summary = json.loads(out)["repeats"][0]["summary"]
    assert summary["answered"] == 0
    (reason,) = summary["errors"]
    assert reason.startswith("http_400")
    assert summary["errors"][reason] == 3


async def test_without_a_server_it_says_so_and_measures_nothing() -> None:
    code, out, err = await bench("serve", "--url", "http://127.0.0.1:1", "--model", "m")
    assert code == 2
    assert out == ""
    assert "127.0.0.1:1 can't be reached" in err


# ---------------------------------------------------------------- servers that misbehave

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


@asynccontextmanager
async def serving(answer: bytes, *, then_close: bool = True) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if not then_close:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


EVENT = chunk(b'data: {"choices": [{"text": "a"}]}\n\n')
REFUSED = b"HTTP/1.1 503 No\r\nContent-Length: 30\r\n\r\n" + b'{"error":{"code":"no_worker"}}'
WHOLE = HEAD + EVENT + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (WHOLE, ""),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\": [{\"text\": \"a\"}]}\n\ndata: [DONE]\n\n", ""),
        (HEAD + EVENT, "broken"),
        (b"", "broken"),
        (b"no http at all\r\n\r\n", "protocol"),
        (REFUSED, "http_503_no_worker"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nhelp", "http_500"),
        (b"HTTP/1.1 502 No\r\nConnection: close\r\n\r\nhelp", "http_502"),
    ],
)  # fmt: skip
async def test_what_a_server_does_has_a_name(answer: bytes, error: str) -> None:
    async with serving(answer) as url:
        target = await resolved(target_of(url, Api.COMPLETIONS))
        found = await ask(target, b"{}", WAIT_S)
    assert found.error == error


async def test_a_server_that_is_silent_is_given_up() -> None:
    async with serving(HEAD + EVENT, then_close=False) as url:
        found = await ask(target_of(url, Api.COMPLETIONS), b"{}", 0.2)
    assert found.error == "timeout"
    assert found.ended_s > found.sent_s


async def test_nobody_listens() -> None:
    found = await ask(target_of("http://127.0.0.1:1", Api.COMPLETIONS), b"{}", WAIT_S)
    assert found.error == "connect_ConnectionRefusedError"
    with pytest.raises(TandemError) as refused:
        await resolved(target_of("http://127.0.0.1:1", Api.COMPLETIONS))
    assert refused.value.reason is ErrorReason.NO_WORKER


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(TandemError, match="is not like http://host:port"):
        target_of(url, Api.CHAT)


def test_where_a_url_leads() -> None:
    target = target_of("http://[::1]:81/base/v1/", Api.CHAT, "key")
    assert (target.host, target.port) == ("::1", 81)
    assert target.request(b"{}").startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: [::1]:81\r\n")
    assert b"Authorization: Bearer key\r\n" in target.request(b"{}")
    assert b"X-Session-Id" not in target.request(b"{}")
    assert b"X-Session-Id: chat 7\r\n" in target.request(b"{}", "chat 7")
    assert target_of("https://x", Api.CHAT).port == 443
