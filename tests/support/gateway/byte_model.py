"""A second model: the tiny one's tokenizer without merges, so that each byte is a token, in another order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TINY = Path(__file__).resolve().parents[3] / "models" / "tandem-tiny"


def make_byte_model(folder: Path) -> Path:
    """Writes its tokenizer into a new folder, which is returned; the folder's name is the model's."""
    folder.mkdir(parents=True)
    shutil.copy(TINY / "tokenizer_config.json", folder)
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    special = [added["content"] for added in tokenizer["added_tokens"]]
    single = sorted((piece for piece in tokenizer["model"]["vocab"] if len(piece) == 1), reverse=True)
    tokenizer["model"]["vocab"] = {piece: number for number, piece in enumerate([*special, *single])}
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
