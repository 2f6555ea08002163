"""SGLang itself, where it is installed."""

from __future__ import annotations

import importlib
import warnings

import pytest

from tandem.engine.sglang import environment
from tests.support.capabilities import CAPABILITIES
from tests.support.settings import required_capabilities


def require() -> None:
    """Loads SGLang for a CPU, or skips the module that calls this; TANDEM_REQUIRE=sglang makes that a failure."""
    reason = CAPABILITIES["sglang"]()
    if reason is not None and "sglang" in required_capabilities():
        pytest.fail(f"TANDEM_REQUIRE=sglang, but {reason}", pytrace=False)
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)
    environment.use_cpu()
    with warnings.catch_warnings():
        # It warns of every accelerator that is not there.
        warnings.simplefilter("ignore")
        importlib.import_module("sglang.srt.disaggregation.prefill")
        importlib.import_module("sglang.srt.disaggregation.decode")
        importlib.import_module("sglang.srt.managers.scheduler")
        importlib.import_module("sglang.srt.entrypoints.engine")
