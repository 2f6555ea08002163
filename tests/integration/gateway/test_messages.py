"""/v1/messages over real sockets, with a real tokenizer: the same rooms as a chat's."""

from __future__ import annotations

from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import MODEL

HELLO = [{"role": "user", "content": "What do you like to eat?"}]


async def test_workers_see_the_chat_that_a_client_of_openai_would_have_sent() -> None:
    async with cluster() as now:
        system = {"role": "system", "content": "Be brief."}
        await now.client.chat.completions.create(model=MODEL, messages=[system, *HELLO], max_tokens=3, top_p=0.5)
        body = {"model": MODEL, "system": "Be brief.", "messages": HELLO, "max_tokens": 3, "top_p": 0.5}
        answer = (await now.http.post("/v1/messages", json=body)).json()
        count = (
            await now.http.post("/v1/messages/count_tokens", json={"messages": HELLO, "system": "Be brief."})
        ).json()
        first, second = now.decodes[0].submits
    assert first.input_ids == second.input_ids
    assert first.sampling == second.sampling
    assert answer["content"] == [{"type": "text", "text": "t0 t1 t2 "}]
    assert answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"] == count["input_tokens"]
    assert count["input_tokens"] == len(first.input_ids)


async def test_an_answer_that_has_begun_goes_on() -> None:
    async with cluster() as now:
        body = {"model": MODEL, "max_tokens": 3, "stream": True}
        begun = {**body, "messages": [*HELLO, {"role": "assistant", "content": "I like"}]}
        response = await now.http.post("/v1/messages", json=begun)
        await now.http.post("/v1/messages", json={**body, "messages": HELLO})
        longer, plain = (list(submit.input_ids) for submit in now.decodes[0].submits)
    assert longer[: len(plain)] == plain, "the message begun follows the answer's lead"
    assert response.text.count("event: content_block_delta") >= 1
    assert response.text.rstrip().endswith('data: {"type":"message_stop"}')
