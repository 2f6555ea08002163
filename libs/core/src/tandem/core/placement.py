"""Which workers a prompt goes to: a pair, whose KV moves between them, or one worker that does all of it."""

from __future__ import annotations

from typing import Final

from tandem.core.ids import ALONE, PAIR, Role

DEFAULT_UNIFIED_MAX_PROMPT_TOKENS: Final = 256
"""Longest prompt that is taken for a short one."""

Team = tuple[Role, ...]


def teams_for(new_tokens: int, short: int, *, unified_has_place: bool) -> tuple[Team, ...]:
    """Who may take a prompt, the best first. The next is taken where workers of the one before it are lacking.

    new_tokens: those of the prompt that a unified worker has still to compute. short: so many are a short prompt, which
    costs less to compute beside a batch than to move; 0 = none is. unified_has_place: whether it need not wait there.
    """
    return (ALONE, PAIR) if new_tokens <= short and unified_has_place else (PAIR, ALONE)
