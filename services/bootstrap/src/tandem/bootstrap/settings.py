"""Settings of the bootstrap service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.rpc.logs import LogFormat
from tandem.rpc.settings import Settings


class BootstrapSettings(Settings):
    """Read from TANDEM_BOOTSTRAP_*. Certificates are in TANDEM_TLS_*."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_BOOTSTRAP_")

    host: str = Field(default="127.0.0.1", min_length=1, description="host name or address to listen on")
    port: int = Field(default=50050, ge=0, le=65535, description="0: any free port")
    metrics_address: str = Field(
        default="127.0.0.1:0",
        description="host:port of /metrics over plain HTTP; port 0 = any free one, empty = none",
    )
    lease_ttl_ms: int = Field(default=1500, ge=100, le=600_000, description="a worker that is silent this long leaves")
    lease_grace_ms: int = Field(
        default=500, ge=10, le=1000, description="time to read heartbeats that came while this process was held up"
    )
    max_workers: int = Field(default=256, ge=1, le=256)
    max_watchers: int = Field(default=1024, ge=1, le=65536)
    watch_queue: int = Field(
        default=1024, ge=1, le=65536, description="unsent events per watcher, before it is dropped"
    )
    stop_grace_ms: int = Field(default=1000, ge=0, le=60_000)
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING, ERROR"
    )
    log_format: LogFormat = LogFormat.HUMAN

    @property
    def address(self) -> str:
        """host:port to listen on; an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
