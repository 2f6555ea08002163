"""SGLang itself, where it is installed."""

from __future__ import annotations

import importlib.util
import os
import warnings

import pytest


def require() -> None:
    """Loads SGLang for a CPU, or skips the module that calls this; TANDEM_REQUIRE=sglang makes that a failure."""
    if importlib.util.find_spec("sglang") is None:
        if "sglang" in os.environ.get("TANDEM_REQUIRE", "").split(","):
            pytest.fail("TANDEM_REQUIRE names sglang, but it is not installed", pytrace=False)
        pytest.skip("SGLang is not installed", allow_module_level=True)
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    with warnings.catch_warnings():
        # It warns of every accelerator that is not there.
        warnings.simplefilter("ignore")
        importlib.import_module("sglang.srt.disaggregation.prefill")
        importlib.import_module("sglang.srt.disaggregation.decode")
        importlib.import_module("sglang.srt.managers.scheduler")
        importlib.import_module("sglang.srt.entrypoints.engine")
