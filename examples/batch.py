"""Many prompts with OpenAI's client: `python examples/batch.py "One prompt" "Another" ...`

Two ways: all prompts in one request, and a request for each, some at a time. Needs `pip install openai` and a running
system (`make up`). Another server: --url http://host:port/v1.
"""

from __future__ import annotations

import argparse
import asyncio

from openai import APIStatusError, AsyncOpenAI

PROMPTS = ["Once upon a time", "The sea was calm, and", "In the garden there", "Nobody knew why the"]


async def in_one_request(client: AsyncOpenAI, model: str, prompts: list[str], max_tokens: int) -> list[str]:
    """All prompts at once; the answers come together, each with its prompt's number."""
    answer = await client.completions.create(model=model, prompt=prompts, max_tokens=max_tokens)
    return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]


async def one_by_one(
    client: AsyncOpenAI, model: str, prompts: list[str], max_tokens: int, at_once: int
) -> list[str | APIStatusError]:
    """A request for each prompt, `at_once` of them at a time; one that fails does not end the others."""
    places = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> str | APIStatusError:
        async with places:
            try:
                answer = await client.completions.create(model=model, prompt=prompt, max_tokens=max_tokens)
            except APIStatusError as error:  # the client has tried again already where that may help
                return error
            return answer.choices[0].text

    return await asyncio.gather(*map(ask, prompts))


async def main() -> None:
    """Asks both ways, and prints what came."""
    parser = argparse.ArgumentParser(description="Many prompts.")
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="where the gateway asks for one")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()

    async with AsyncOpenAI(base_url=given.url, api_key=given.api_key) as client:
        model = (await client.models.list()).data[0].id
        together = await in_one_request(client, model, given.prompts, given.max_tokens)
        apart = await one_by_one(client, model, given.prompts, given.max_tokens, given.at_once)
    for prompt, one, other in zip(given.prompts, together, apart, strict=True):
        print(f"{prompt}\n  in one request  {one!r}\n  by itself       {other!r}")


if __name__ == "__main__":
    asyncio.run(main())
