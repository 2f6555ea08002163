"""The same cells with real SGLang on the CPU, token for token against SGLang that is not disaggregated."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.faults.cells import Cell, Fault, Moment, Victim, cells
from tests.support.faults.experiment import Stage
from tests.support.faults.load import Draw, Request
from tests.support.faults.moments import CHUNK_TOKENS, SGLANG
from tests.support.system.reference import References
from tests.support.system.system import running_system

CELLS: Final[Sequence[Cell]] = tuple(
    cells(["cma"], SGLANG, (Victim.PREFILL, Victim.DECODE), (Fault.CUT, Fault.STOP, Fault.KILL))
)
"""Two workers, three faults, two moments."""
PROMPTS: Final = 24
"""They are asked in turn, again and again."""
PROMPT_TOKENS: Final = 600
"""Three chunks."""
MAX_TOTAL_TOKENS: Final = 32_768
BOUND_S: Final = 60.0
"""From the fault to the last outcome: whole answers of several requests at once, on a few cores, are among them."""
SILENCE_BOUND_S: Final = 10.0
"""A prompt is computed again, behind those of other requests, on a few cores. What it takes to notice a fault and to
ask elsewhere is bounded by the same cells with the mock engine, which computes in no time."""
START_TIMEOUT_S: Final = 300.0
WHOLE_TIMEOUT_S: Final = 300.0
"""A worker whose process ended loads SGLang anew."""


@contextmanager
def sglang_stage(folder: Path, provider: str, moment: Moment) -> Iterator[Stage]:
    """With SGLang, whose answers SGLang itself tells before."""
    arrangement = SGLANG[moment]
    draw = drawn_from(folder, arrangement.new_tokens)
    shape = ("--ratio", "2:2", "--provider", provider, "--engine-arg", f"max_total_tokens={MAX_TOTAL_TOKENS}")
    one_thread = {"OMP_NUM_THREADS": "1"}
    with running_system(
        folder, *shape, *arrangement.options, env=one_thread, start_timeout_s=START_TIMEOUT_S
    ) as system:
        yield Stage(system, arrangement, draw, BOUND_S, SILENCE_BOUND_S, WHOLE_TIMEOUT_S)


def drawn_from(folder: Path, new_tokens: int) -> Draw:
    """Requests whose answers are known; folder: for what the one that tells them logs.

    In chunks SGLang rounds some prompts otherwise than whole, on some processors, and where its chunks end depends on
    what else is computed. Prompts whose answers hang on that are left out.
    """
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    references = References(folder, prompts, new_tokens)
    whole, chunked = references.answers(), references.answers(chunked_prefill_size=CHUNK_TOKENS)
    steady = [(prompt, one) for prompt, one, other in zip(prompts, whole, chunked, strict=True) if one == other]
    assert len(steady) > PROMPTS // 2, "most answers hang on rounding"
    known = itertools.cycle(steady)

    def draw(tokens: int, stream: bool) -> Request:
        prompt, answer = next(known)

        def rooms_of(found: list[int]) -> list[int] | None:
            """SGLang's answer does not tell where it went on."""
            return [len(found)] if found == answer[: len(found)] else None

        return Request(prompt, tokens, rooms_of, stream)

    return draw
