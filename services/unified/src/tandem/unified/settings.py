"""Settings of the unified service. Environment: TANDEM_UNIFIED_<NAME>; its engine's: TANDEM_SGLANG_ or TANDEM_MOCK_."""

from __future__ import annotations

from typing import ClassVar

from tandem.core.ids import Role
from tandem.engine.worker.settings import WorkerSettings


class UnifiedSettings(WorkerSettings, env_prefix="TANDEM_UNIFIED_"):
    """What WorkerSettings has, under this service's prefix."""

    role: ClassVar[Role] = Role.UNIFIED
