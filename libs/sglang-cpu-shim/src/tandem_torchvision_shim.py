"""Lets `import torchvision` work beside a CPU build of torch.

The torchvision wheel on the Python package index is linked against CUDA. Beside a CPU torch its C++ library cannot be
loaded, so two operators are missing that torchvision looks up while it is imported ("operator torchvision::nms does
not exist"). This declares them just before that import. They have no body: nothing of SGLang calls them for text.

This module is imported at the start of every Python process of the environment (tandem_torchvision_shim.pth), so it
does nothing but add one import hook; torch is touched only when torchvision is looked for. Beside a CUDA build of torch
nothing is declared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionHook:
    """Import hook that finds nothing itself: it declares the operators when something looks for torchvision."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called for each module that is imported."""
        if name == "torchvision":
            declare_operators()
        return None


@cache
def declare_operators() -> object:
    """Declares the two operators, once, if this torch is a CPU build.

    Returns what must live as long as they should: torch drops the operators of a library that is collected.
    """
    import torch

    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator)
    return library


sys.meta_path.insert(0, TorchvisionHook())
