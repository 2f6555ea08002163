"""What SGLang answers without disaggregation: one process that answers prompts and chats, one at a time, and ends.

Run as `python -m tests.support.system.reference IN OUT`, two JSON files: engine arguments and questions, and answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.settings import environment

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 280


class References:
    """Answers by configuration, each asked for once."""

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        samplings: Sequence[dict[str, Any]] | None = None,
        chats: Sequence[dict[str, Any]] = (),
    ) -> None:
        """samplings: for each prompt, what it is to be answered with besides greedily. chats: bodies of OpenAI's."""
        self._folder = folder
        self._prompts = prompts
        self._new_tokens = new_tokens
        self._samplings = samplings or [{}] * len(prompts)
        self._chats = chats
        self._known: dict[str, dict[str, Any]] = {}

    def answers(self, **engine_args: Any) -> list[list[int]]:
        """Tokens that SGLang answers to each prompt, started with these arguments."""
        tokens: list[list[int]] = self._all(engine_args)["answers"]
        return tokens

    def chats(self, **engine_args: Any) -> list[dict[str, Any]]:
        """What SGLang's own server answers to each chat."""
        found: list[dict[str, Any]] = self._all(engine_args)["chats"]
        return found

    def _all(self, engine_args: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(engine_args, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._ask(engine_args)
        return self._known[key]

    def _ask(self, engine_args: dict[str, Any]) -> dict[str, Any]:
        given, found = self._folder / "given.json", self._folder / "found.json"
        asked = {
            "engine": engine_args,
            "prompts": self._prompts,
            "new_tokens": self._new_tokens,
            "samplings": self._samplings,
            "chats": self._chats,
        }
        given.write_text(json.dumps(asked))
        tp = int(engine_args.get("tp_size", 1))
        env = {
            "SGLANG_USE_CPU_ENGINE": "1",
            "SGLANG_HOST_IP": "127.0.0.1",
            "SGLANG_PLUGINS": "none",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        if tp > 1:
            env["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % 2) for rank in range(tp))
        with (self._folder / "reference.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "tests.support.system.reference", str(given), str(found)],
                check=True,
                cwd=ROOT,
                env=environment(**env),
                stdout=log,
                stderr=log,
                timeout=TIMEOUT_S,
            )
        answers: dict[str, Any] = json.loads(found.read_text())
        return answers


def answer_chats(engine: Any, chats: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the part of SGLang's server that answers chats."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat

    serving = OpenAIServingChat(engine.tokenizer_manager, engine.template_manager)
    answers = []
    for chat in chats:
        answer = engine.loop.run_until_complete(serving.handle_request(ChatCompletionRequest(**chat), None))
        assert hasattr(answer, "choices"), getattr(answer, "body", answer)
        answers.append(answer.model_dump(mode="json"))
    return answers


def main() -> None:
    """The reference's own process."""
    import sglang

    given = json.loads(Path(sys.argv[1]).read_text())
    engine = sglang.Engine(
        model_path=str(ROOT / "models" / "tandem-tiny"),
        device="cpu",
        max_total_tokens=32_768,
        max_running_requests=16,
        log_level="warning",
        **given["engine"],
    )
    sampling = {"temperature": 0, "max_new_tokens": given["new_tokens"], "ignore_eos": True}
    answers = [
        engine.generate(input_ids=prompt, sampling_params=sampling | own)["output_ids"]
        for prompt, own in zip(given["prompts"], given["samplings"], strict=True)
    ]
    Path(sys.argv[2]).write_text(json.dumps({"answers": answers, "chats": answer_chats(engine, given["chats"])}))
    engine.shutdown()


if __name__ == "__main__":
    main()
