"""Takes one move out of the receiver's table in every process that has this folder on its PYTHONPATH."""

from __future__ import annotations

from tandem.core.room.events import CompleteClaimed
from tandem.core.room.receiver import TRANSITIONS, ReceiverState

for state in (ReceiverState.OFFERED, ReceiverState.RECEIVING):
    del TRANSITIONS[state, CompleteClaimed]
