"""Options of a load, alike in every command that has one."""

from __future__ import annotations

from typing import Annotated

import typer

PromptTokens = Annotated[int | None, typer.Option(min=1, help="That a request adds to its context.")]
NewTokens = Annotated[int | None, typer.Option(min=1, help="Of an answer.")]
Spread = Annotated[float | None, typer.Option(min=0, max=1, help="Lengths: mean * (1 - spread .. 1 + spread).")]
MaxPromptTokens = Annotated[int, typer.Option(min=1, help="Longer prompts are cut.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longer answers are not asked for.")]
MAX_TOKENS = 1_000_000
"""Default of the last two."""
