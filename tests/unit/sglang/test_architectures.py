"""Only the model modules that a checkpoint needs are imported."""

from __future__ import annotations

import json
from pathlib import Path

from tandem.engine.sglang.architectures import unneeded_modules


def _checkpoint(folder: Path, *architectures: str) -> str:
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    return str(folder)


def test_a_llama_needs_llama_only(tmp_path: Path) -> None:
    unneeded = unneeded_modules(_checkpoint(tmp_path, "LlamaForCausalLM"))
    assert "llama" not in unneeded
    assert {"qwen3", "deepseek_v2"} <= set(unneeded)
    assert not {"registry", "__init__"} & set(unneeded)


def test_an_unknown_architecture_leaves_the_choice_to_sglang(tmp_path: Path) -> None:
    assert unneeded_modules(_checkpoint(tmp_path, "SomethingNewForCausalLM")) == []


def test_an_id_that_is_no_folder_leaves_the_choice_to_sglang() -> None:
    assert unneeded_modules("organisation/model") == []
