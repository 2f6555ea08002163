"""Prompts whose states are spoiled on their way out of prefill, by their length in tokens."""

from __future__ import annotations

FLIPPED_TOKENS = 201
"""One byte of a state is another one."""
DROPPED_TOKENS = 202
"""No state is sent."""
