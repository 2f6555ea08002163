"""A streamed chat with OpenAI's client: `python examples/streaming.py "Tell me a story."`

Needs `pip install openai` and a running system (`make up`). Another server: --url http://host:port/v1.
"""

from __future__ import annotations

import argparse
import time

from openai import OpenAI


def main() -> None:
    """Prints the answer as it comes, and when its first text came."""
    parser = argparse.ArgumentParser(description="A streamed chat.")
    parser.add_argument("message", nargs="?", default="Tell me a story.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="where the gateway asks for one")
    parser.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args()

    with OpenAI(base_url=given.url, api_key=given.api_key) as client:
        model = client.models.list().data[0].id
        began, first_s = time.perf_counter(), 0.0
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": given.message}],
            max_tokens=given.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        for event in stream:
            for choice in event.choices:
                if choice.delta.content:
                    first_s = first_s or time.perf_counter() - began
                    print(choice.delta.content, end="", flush=True)
            if event.usage is not None:
                tokens = event.usage.completion_tokens
                print(f"\n\n{tokens} tokens from {model}; the first text came after {first_s * 1000:.0f} ms")


if __name__ == "__main__":
    main()
