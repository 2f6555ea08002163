"""The system in containers with the mock engine: what clients ask, who is let in, and what containers may do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tandem.cli import certs, keys
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import PLAIN
from tandem.rpc.probe import why_not_ready
from tandem.v1 import admin_pb2, admin_pb2_grpc
from tests.support.docker.cluster import ADMIN_PORT, Cluster, credentials_in
from tests.support.docker.stack import TAG, Stack, running, service_of
from tests.support.docker.traced import check_trace
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import events, generate_all, prompt_of

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

NEW_TOKENS = 12
GREEDY: dict[str, Any] = {"model": "tandem-tiny", "max_tokens": NEW_TOKENS, "temperature": 0}
USER = "10001:10001"
PROMPT = "Let me tell you a lonnng story "
MAX_IMAGE_BYTES = 300 * 1000 * 1000
SERVICES = {"bootstrap", "gateway", "prefill-mock", "decode-mock"}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's key file."""
    folder = tmp_path_factory.mktemp("keys")
    folder.chmod(0o755)
    return folder / "keys.txt"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    """A key that opens the gateway."""
    return keys.new("tests", key_file).key


@pytest.fixture(scope="module")
def stack(images: None, key: str, key_file: Path) -> Iterator[Stack]:
    """One prefill and one decode worker, and a gateway that asks for keys."""
    with running(Stack(API_KEYS_DIR=str(key_file.parent), API_KEYS_FILE=key_file.name)) as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Its services."""
    return Cluster.of(stack, tmp_path_factory.mktemp("certs"))


def openai_client(stack: Stack, key: str) -> openai.AsyncOpenAI:
    """The official client, which tries nothing twice."""
    base = f"{stack.gateways()[0]}/v1"
    return openai.AsyncOpenAI(base_url=base, api_key=key, http_client=httpx.AsyncClient(trust_env=False), max_retries=0)


async def ask(stack: Stack, key: str, oracle: Oracle, seed: int, count: int, *, stream: bool = False) -> None:
    """Sends prompts, eight at once, and compares each answer with the oracle's."""
    dice = random.Random(seed)
    prompts = [[dice.randrange(3, 1000) for _ in range(dice.randrange(1, 100))] for _ in range(count)]
    async with stack.client(key) as client:
        answers = await generate_all(client, prompts, NEW_TOKENS, at_once=8, stream=stream)
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = oracle.predict(prompt, NEW_TOKENS)
        assert (answer.tokens, answer.text) == (wanted.tokens, wanted.text), f"a prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_generate_answers_as_the_oracle_foretells(stack: Stack, key: str, oracle: Oracle, stream: bool) -> None:
    await ask(stack, key, oracle, seed=1, count=16, stream=stream)


async def test_generate_takes_text_and_batches(stack: Stack, key: str) -> None:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS}
    async with stack.client(key) as client:
        one = await client.post("/generate", json={"text": PROMPT, "sampling_params": sampling})
        both = await client.post("/generate", json={"text": [PROMPT, "Once"], "sampling_params": sampling})
        parts = [
            event["text"] async for event in events(client, "/generate", {"text": PROMPT, "sampling_params": sampling})
        ]
    assert one.json()["text"]
    assert both.json()[0]["text"] == one.json()["text"] == parts[-1]
    assert len(both.json()) == 2


async def test_openais_client_chats_streams_and_completes(stack: Stack, key: str) -> None:
    asked = {**GREEDY, "messages": [{"role": "user", "content": "What do you like to eat?"}]}
    async with openai_client(stack, key) as client:
        assert [model.id async for model in client.models.list()] == [GREEDY["model"]]
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([event.choices[0].delta.content or "" async for event in stream])
        assert text == whole.choices[0].message.content != ""
        completion = await client.completions.create(**GREEDY, prompt=PROMPT)
        parts = await client.completions.create(**GREEDY, prompt=PROMPT, stream=True)
        assert "".join([event.choices[0].text async for event in parts]) == completion.choices[0].text != ""


async def test_without_a_key_only_the_health_is_told(stack: Stack, key: str) -> None:
    for given, status in (("", 401), ("tk_none", 401), (key, 200)):
        async with stack.client(given) as client:
            assert (await client.get("/v1/models")).status_code == status
            assert (await client.get("/ready")).status_code == 200
    async with openai_client(stack, "none") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_new_key_opens_a_running_gateway(stack: Stack, key: str, key_file: Path) -> None:
    new = keys.new("late", key_file).key
    async with httpx.AsyncClient(base_url=stack.gateways()[0], timeout=10, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {new}"}
        # The gateway looks at the file at a request, and once a second at most.
        for _ in range(50):
            if (response := await client.get("/v1/models", headers=headers)).status_code == 200:
                break
            await asyncio.sleep(0.1)
        assert response.status_code == 200, response.text
    told = stack.compose("logs", "gateway")
    assert "keys.txt has changed" in told
    assert key not in told
    assert new not in told


@pytest.mark.parametrize(
    ("service", "port"), [("gateway", 50051), ("bootstrap", 50050), ("prefill-mock", 50052), ("decode-mock", 50052)]
)
async def test_strangers_and_plain_text_are_refused(
    stack: Stack, cluster: Cluster, tmp_path: Path, service: str, port: int
) -> None:
    certs.make(tmp_path, [], 1)
    other = credentials_in(tmp_path / "client")
    ours = replace(cluster.client, server_name=service.partition("-")[0])
    stranger = replace(ours, cert_chain=other.cert_chain, private_key=other.private_key)
    address = f"{stack.address(service)}:{port}"
    assert await why_not_ready(address, ours) == ""
    for refused in (stranger, replace(stranger, ca=other.ca), PLAIN):
        assert (await why_not_ready(address, refused)).startswith("UNAVAILABLE")


async def test_a_worker_is_drained_by_the_gateways_admin_service(
    stack: Stack, cluster: Cluster, key: str, oracle: Oracle
) -> None:
    (decode,) = [name for name in await cluster.members(2) if name.startswith("decode")]
    address, credentials = cluster.dial("gateway", ADMIN_PORT)
    async with open_channel(address, credentials) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        await admin.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id=decode), timeout=10)
        await cluster.wait_view(lambda view: decode in view.workers and view.workers[decode].draining)
        async with stack.client(key) as client:
            refused = await client.post("/generate", json={"text": PROMPT})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] in ("no_worker", "draining")
        await admin.UndrainWorker(admin_pb2.UndrainWorkerRequest(worker_id=decode), timeout=10)
    await cluster.members(2)
    await ask(stack, key, oracle, seed=3, count=4)


def test_the_command_runs_in_a_container(stack: Stack) -> None:
    told = stack.command("workers", "--json")
    assert {member["info"]["role"] for member in json.loads(told)} == {"ROLE_PREFILL", "ROLE_DECODE"}


async def test_the_trace_of_a_request_is_whole(stack: Stack, cluster: Cluster, key: str) -> None:
    async with stack.client(key) as client:
        await check_trace(cluster, client, prompt_of(100), NEW_TOKENS)


async def test_kv_travels_over_tcp_between_containers_and_the_log_says_why(stack: Stack, cluster: Cluster) -> None:
    members = await cluster.members(2)
    links = [link for member in members.values() if member.status is not None for link in member.status.links]
    assert len(links) == 2
    assert all(link.endswith("=tcp") for link in links)
    assert "gets provider tcp: not cma: the two processes do not share host" in stack.compose("logs", "prefill-mock")


def test_only_the_gateway_is_published_and_only_on_loopback(stack: Stack) -> None:
    published = {
        service_of(one): {
            binding["HostIp"]
            for bindings in one.attrs["NetworkSettings"]["Ports"].values()
            for binding in bindings or ()
        }
        for one in stack.containers()
    }
    assert published == {service: {"127.0.0.1"} if service == "gateway" else set() for service in SERVICES}


def test_containers_may_do_little(stack: Stack) -> None:
    for one in stack.containers():
        assert one.attrs["Config"]["User"] == USER
        host = one.attrs["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}


def test_keys_are_read_by_their_service_only(stack: Stack) -> None:
    for one in stack.containers():
        status, listed = one.exec_run(["ls", "-ln", "/certs"])
        assert status == 0
        modes = {line.split()[-1]: line.split()[:3:2] for line in listed.decode().splitlines()[1:]}
        assert modes["key.pem"] == ["-rw-------", "10001"]


@pytest.mark.long
async def test_a_unified_worker_beside_the_pair_takes_short_prompts(
    stack: Stack, cluster: Cluster, key: str, oracle: Oracle
) -> None:
    Stack("unified-mock").build()
    before = await cluster.members(2)
    with stack.beside("unified-mock"):
        await cluster.members(3)
        await ask(stack, key, oracle, seed=4, count=4)
        await cluster.wait_succeeded("unified", 4)
        after = await cluster.members(3)
    await cluster.members(2)
    for name, member in before.items():
        assert (member.status and member.status.submitted) == (after[name].status and after[name].status.submitted)


def test_images_are_small(stack: Stack) -> None:
    sizes = {name: stack.docker.images.get(f"tandem-{name}:{TAG}").attrs["Size"] for name in (*SERVICES, "cli")}
    assert not {name: size for name, size in sizes.items() if size > MAX_IMAGE_BYTES}, sizes


def test_certificates_are_made_once(stack: Stack) -> None:
    before = stack.compose("exec", "-T", "gateway", "cat", "/certs/cert.pem")
    stack.up()
    assert stack.compose("exec", "-T", "gateway", "cat", "/certs/cert.pem") == before
    assert "are good" in stack.compose("logs", "certs")
