"""In every process that has this folder on its PYTHONPATH: short convolutions on a CPU, and spoiled prompts.

SGLang has these convolutions as GPU kernels only. The pool of their states, its slots and what is handed over are its
own.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

from tandem.engine.rank.agent import RankAgent
from tandem.engine.rank.pools import METADATA_POOL
from tandem.engine.rank.sender_room import SenderRoom
from tests.support.sglang.stand_ins.spoiled import DROPPED_TOKENS, FLIPPED_TOKENS

FILES = {
    "sgl_kernel.mamba": "missing_kernels.py",
    "sglang.srt.layers.attention.mamba.causal_conv1d": "short_conv.py",
}


class StandIns:
    """Loads our file in place of a module."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """The file of a module that we stand in for."""
        if fullname not in FILES:
            return None
        return importlib.util.spec_from_file_location(fullname, Path(__file__).with_name(FILES[fullname]))


def push(self, room, kv_pages, state_pages, last, metadata_row, kv_buffers):
    """Prefill's last chunk of a spoiled prompt: without its states, or with one byte of them changed."""
    shell = self._rooms.get(room)
    tokens = shell.ticket.prompt_tokens if last and isinstance(shell, SenderRoom) else 0
    if tokens == DROPPED_TOKENS:
        state_pages = [None for _ in state_pages]
    if tokens == FLIPPED_TOKENS:
        pool = self.setup.pools[METADATA_POOL + 1]
        # The top byte of a float: the number is in the hundreds now.
        ctypes.c_ubyte.from_address(
            pool.buffers[0].address + int(state_pages[0][-1]) * pool.item_bytes[0] + 3
        ).value = 68
    original_push(self, room, kv_pages, state_pages, last, metadata_row, kv_buffers)


sys.meta_path.insert(0, StandIns)
original_push, RankAgent.push = RankAgent.push, push
