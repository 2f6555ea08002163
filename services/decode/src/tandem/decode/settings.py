"""Settings of the decode service. Environment: TANDEM_DECODE_<NAME>; its engine's: TANDEM_SGLANG_ or TANDEM_MOCK_."""

from __future__ import annotations

from typing import ClassVar

from tandem.core.ids import Role
from tandem.engine.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings, env_prefix="TANDEM_DECODE_"):
    """What WorkerSettings has, under this service's prefix."""

    role: ClassVar[Role] = Role.DECODE
