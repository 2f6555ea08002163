"""What SGLang answers without disaggregation: one process that answers a list of prompts, one at a time, and ends.

Run as `python -m tests.support.system.reference IN OUT`, two JSON files: engine arguments and prompts, and answers.
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
    ) -> None:
        """samplings: for each prompt, what it is to be answered with besides greedily."""
        self._folder = folder
        self._prompts = prompts
        self._new_tokens = new_tokens
        self._samplings = samplings or [{}] * len(prompts)
        self._known: dict[str, list[list[int]]] = {}

    def answers(self, **engine_args: Any) -> list[list[int]]:
        """Tokens that SGLang answers to each prompt, started with these arguments."""
        key = json.dumps(engine_args, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._ask(engine_args)
        return self._known[key]

    def _ask(self, engine_args: dict[str, Any]) -> list[list[int]]:
        given, found = self._folder / "given.json", self._folder / "found.json"
        asked = {
            "engine": engine_args,
            "prompts": self._prompts,
            "new_tokens": self._new_tokens,
            "samplings": self._samplings,
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
        answers: list[list[int]] = json.loads(found.read_text())
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
    Path(sys.argv[2]).write_text(json.dumps(answers))
    engine.shutdown()


if __name__ == "__main__":
    main()
