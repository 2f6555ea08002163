"""Settings of tracing, the same for every service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.rpc.settings import Settings


class TraceSettings(Settings):
    """Read from TANDEM_TRACE_*."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_TRACE_")

    enabled: bool = Field(default=True, description="false: no span is recorded, whatever a caller asks for")
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the requests that are traced; a client's own decision, in its traceparent, goes before",
    )
    endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^\s/]+/?)?$",
        description="where spans are exported to by OTLP over gRPC, e.g. http://localhost:4317; empty = nowhere",
    )
    export_timeout_ms: int = Field(default=3_000, ge=100, le=60_000, description="longest export of one batch")
    export_delay_ms: int = Field(default=1_000, ge=10, le=60_000, description="longest wait of a span for its batch")
    export_batch_spans: int = Field(default=512, ge=1, le=8_192, description="most spans of one batch")
    export_queue_spans: int = Field(
        default=8_192, ge=1, le=1 << 20, description="spans that may wait for their export; then the oldest is dropped"
    )
    kept_traces: int = Field(
        default=256, ge=0, le=65_536, description="last traces that are kept in memory for `tandem trace`; 0 = none"
    )
    kept_spans: int = Field(default=1_024, ge=1, le=16_384, description="most spans that are kept of one trace")
    content: bool = Field(
        default=False, description="true: prompts and answers are written into spans, up to 16384 characters of each"
    )
