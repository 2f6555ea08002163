"""Settings of the data path's tests."""

from __future__ import annotations

import os

LARGEST_BYTES = int(os.environ.get("TANDEM_RDMA_LARGEST_BYTES", 1 << 30))
"""Size of the largest write of the conformance suite; lower it where memory is short."""
