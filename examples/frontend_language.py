"""SGLang's frontend language against Tandem: `python examples/frontend_language.py`.

One program of several steps, streamed, then run on many inputs at once. With `--regex` its second step is held to a
form, which needs the engine SGLang (`make up`); the mock has no grammars. `sgl.select` is not offered here: it asks for
log probabilities of a prompt without an answer. Needs SGLang, which `make up` installs in .venv.
"""

from __future__ import annotations

import argparse
from typing import Any

import sglang as sgl

SUBJECTS = ["the sea", "a garden", "the moon"]
RATING = r"[1-9]/10"


@sgl.function
def review(s: Any, subject: str, max_tokens: int, regex: str | None) -> None:
    """A sentence about a subject, then a rating of it."""
    s += f"Here is a sentence about {subject}: " + sgl.gen("sentence", max_tokens=max_tokens, temperature=0)
    s += "\nI rate it " + sgl.gen("rating", max_tokens=8, temperature=0, regex=regex)


def main() -> None:
    """Streams one, runs all."""
    parser = argparse.ArgumentParser(description="SGLang's frontend language.")
    parser.add_argument("subjects", nargs="*", default=SUBJECTS)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", help="where the gateway asks for one")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--regex", action="store_true", help=f"hold ratings to {RATING}")
    given = parser.parse_args()

    # The template is that of plain text; the program above writes no chats.
    sgl.set_default_backend(sgl.RuntimeEndpoint(given.url, api_key=given.api_key, chat_template_name="default"))
    asked = [
        {"subject": one, "max_tokens": given.max_tokens, "regex": RATING if given.regex else None}
        for one in given.subjects
    ]
    streamed = review.run(**asked[0], stream=True)
    for text in streamed.text_iter():
        print(text, end="", flush=True)
    print("\n")
    for words, state in zip(asked, review.run_batch(asked, num_threads=4), strict=True):
        print(f"{words['subject']}: {state['sentence']!r}, rated {state['rating']!r}")


if __name__ == "__main__":
    main()
