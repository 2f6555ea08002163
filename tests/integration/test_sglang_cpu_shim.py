"""The CPU stand-ins: the one function with a body does what SGLang expects, and nothing hides a real package."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parents[2] / "libs" / "sglang-cpu-shim" / "src"
KERNEL = SHIM / "sgl_kernel" / "__init__.py"


def load_kernel() -> dict[str, object]:
    """Runs the stand-in's source, whatever is installed."""
    names: dict[str, object] = {"__name__": "sgl_kernel"}
    exec(compile(KERNEL.read_text(), str(KERNEL), "exec"), names)
    return names


@pytest.mark.sglang
def test_slots_are_written_row_by_row() -> None:
    import torch

    table = torch.zeros((4, 6), dtype=torch.int32)
    rows, start, end = torch.tensor([2, 0]), torch.tensor([1, 3]), torch.tensor([3, 6])
    assign = load_kernel()["assign_req_to_token_pool_cpu"]
    assert callable(assign)
    assign(rows, table, start, end, torch.tensor([11, 12, 21, 22, 23]), 6)
    assert table.tolist() == [[0, 0, 0, 21, 22, 23], [0] * 6, [0, 11, 12, 0, 0, 0], [0] * 6]


def test_the_other_names_say_what_they_need() -> None:
    names = load_kernel()
    missing = sorted(name for name in names if name.endswith("_cpu") and name != "assign_req_to_token_pool_cpu")
    assert len(missing) == 8
    for name in missing:
        function = names[name]
        assert callable(function)
        with pytest.raises(NotImplementedError, match=name):
            function()


def test_the_real_package_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def distributions(name: str) -> list[str]:
        return ["found"] if name == "sglang-kernel" else []

    monkeypatch.setattr(metadata, "distributions", distributions)
    with pytest.raises(ImportError, match="sglang-kernel"):
        load_kernel()


@pytest.mark.sglang
@pytest.mark.slow
def test_torchvision_imports_after_it_was_looked_for() -> None:
    code = "import importlib.util, torch; importlib.util.find_spec('torchvision'); import torchvision"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
