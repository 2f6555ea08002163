"""Settings of the gateway; the only place where its environment is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
from tandem.core.policies import DEFAULT_LOAD_CAP, DEFAULT_PREFIX_TOKENS
from tandem.core.share import Share
from tandem.rpc.logs import LogFormat
from tandem.rpc.settings import Settings

SHARED_OUT: Final = (
    "max_concurrent",
    "max_queued",
    "max_queued_tokens",
    "retry_burst",
    "kept_responses",
    "kept_responses_bytes",
)
"""Bounds of the whole gateway, of which each of its processes gets an equal part."""
MAX_PROCESSES: Final = 64


class GatewaySettings(Settings):
    """One gateway. Each default suits one machine."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_GATEWAY_", protected_namespaces=())

    processes: int = Field(
        default=1, ge=1, le=MAX_PROCESSES, description="processes that serve the HTTP port together: docs/processes.md"
    )
    host: str = Field(default="127.0.0.1", description="address on which HTTP is served")
    port: int = Field(default=8000, ge=0, le=65535, description="HTTP port; 0 = any free one")
    admin_address: str = Field(default="127.0.0.1:50051", description="host:port of AdminService (gRPC)")
    bootstrap_address: str = Field(default="127.0.0.1:50050", description="host:port of BootstrapService")
    model_path: str = Field(description="directory or Hugging Face id with the model's tokenizer")
    tokenizers: Mapping[str, str] = Field(
        default={},
        max_length=1024,
        description="JSON object: where the tokenizer of each model is; of others it is where their workers say, "
        "else `model_path`",
    )
    served_model_name: str = Field(
        default="", description="the only model to serve; empty = every model that the workers serve"
    )
    prefill_policy: str = Field(default="least_load", description="how a prefill worker is chosen: docs/routing.md")
    decode_policy: str = Field(default="least_load", description="how a decode worker is chosen: docs/routing.md")
    unified_policy: str = Field(default="least_load", description="how a unified worker is chosen: docs/routing.md")
    unified_max_prompt_tokens: int = Field(
        default=DEFAULT_UNIFIED_MAX_PROMPT_TOKENS,
        ge=0,
        le=1 << 22,
        description="longest prompt that goes to a unified worker with a free place rather than to a pair; "
        "0 = none but what no pair can take",
    )
    load_cap: float = Field(
        default=DEFAULT_LOAD_CAP,
        ge=1,
        le=100,
        description="where a key chooses the worker: the most that one may be loaded, as a multiple of the mean",
    )
    prefix_tokens: int = Field(
        default=DEFAULT_PREFIX_TOKENS,
        ge=1,
        le=1 << 20,
        description="prefix_hash: how many tokens of a prompt are its beginning",
    )
    held_pages: int = Field(
        default=1 << 20,
        ge=0,
        le=1 << 26,
        description="cache_aware, least_cost: most pages that are known of, over all workers; some 200 bytes each",
    )
    breaker_failures: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="rooms that a worker must fail in a row, by its own fault, to get none for a while; 0 = never",
    )
    breaker_open_ms: int = Field(default=5000, ge=0, le=600_000, description="that while; then one room is a probe")
    outlier_excess: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="by how much a worker's failed share of rooms exceeds that of the others for it to get none "
        "for a while; 0 = never",
    )
    slow_start_ms: int = Field(
        default=10_000,
        ge=0,
        le=600_000,
        description="until a worker that has joined or recovered gets its full share; 0 = at once",
    )
    api_keys: tuple[SecretStr, ...] = Field(
        default=(), description="keys of which a client must send one as a bearer token; empty = open to all"
    )
    api_keys_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None,
        description="file with one NAME:SHA256 of a key per line, as `tandem keys new` writes them; "
        "read again when it changes",
    )

    tenants_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None,
        description="TOML file with what tenants may have: docs/admission.md; read again when it changes",
    )

    http_cert_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None, description="PEM file with the certificate chain of the HTTP port, which then speaks TLS only"
    )
    http_key_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None, description="PEM file with its key"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="origins whose pages in a browser may use the HTTP API, such as https://chat.example.com; "
        "`*` = all, empty = none",
    )
    client_stall_ms: int = Field(
        default=30_000,
        ge=100,
        le=3_600_000,
        description="how long a client may take nothing of what is sent to it, before its connection is ended",
    )
    read_timeout_ms: int = Field(
        default=30_000, ge=10, le=3_600_000, description="most time between a request's headers and the end of its body"
    )

    request_timeout_ms: int = Field(
        default=600_000, ge=1, le=86_400_000, description="most time for a request; X-Request-Timeout may ask for less"
    )
    drain_timeout_ms: int = Field(default=30_000, ge=0, le=3_600_000)
    max_attempts: int = Field(default=3, ge=1, le=10)
    retry_backoff_ms: int = Field(default=20, ge=0, le=10_000)
    retry_burst: int = Field(
        default=1024,
        ge=0,
        le=100_000,
        description="retries of all answers together that may follow each other at once; as many again in a minute",
    )
    retry_ratio: float = Field(
        default=0.2, ge=0, le=10, description="retries that each new answer adds to what is left of that number"
    )
    hedge_after_ms: int = Field(
        default=0,
        ge=0,
        le=600_000,
        description="without a word for so long other workers are asked too, and the first that speaks is heard; "
        "0 = never",
    )
    retry_wait_ms: int = Field(
        default=1000,
        ge=0,
        le=60_000,
        description="longest wait for a Session with workers that were lost, or are known",
    )
    retry_after_s: int = Field(default=1, ge=1, le=3600)

    max_concurrent: int = Field(default=1024, ge=1, le=100_000, description="sequences in flight")
    max_queued: int = Field(
        default=1024,
        ge=0,
        le=100_000,
        description="requests that wait for their turn; more are refused: docs/admission.md",
    )
    max_queued_tokens: int = Field(
        default=4 << 20,
        ge=1,
        le=1 << 40,
        description="tokens of the requests that wait: those of their prompts, and those that they may generate",
    )
    decode_commit: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="tokens that requests may need on a worker at the same time, as a multiple of what its KV pages "
        "hold; who needs more waits. 0 = no bound",
    )
    queue_patience_ms: int = Field(
        default=2000,
        ge=0,
        le=600_000,
        description="how long others may overtake a request that does not fit yet; then what comes free is kept for it",
    )
    max_body_bytes: int = Field(default=8 << 20, ge=1024, le=1 << 30)
    max_n: int = Field(default=16, ge=1, le=1024)
    max_batch: int = Field(default=128, ge=1, le=4096)
    max_tokenize_size: int = Field(
        default=1 << 20,
        ge=1,
        le=1 << 26,
        description="characters that /v1/tokenize takes in one request, and tokens that /v1/detokenize takes",
    )
    default_max_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="new tokens of a chat that names no limit, if the context allows"
    )
    stream_buffer_tokens: int = Field(
        default=4096, ge=1, le=1 << 20, description="tokens kept for a client that reads slowly, before it is dropped"
    )
    session_outbox: int = Field(default=4096, ge=16, le=1 << 20, description="messages waiting for one worker")
    kept_responses: int = Field(
        default=1024, ge=0, le=1 << 20, description="answers of /v1/responses that are kept in memory; 0 = none"
    )
    kept_responses_bytes: int = Field(default=64 << 20, ge=1024, le=1 << 36, description="bytes of them, about")
    kept_responses_age_s: int = Field(default=86_400, ge=1, le=30 * 86_400, description="how long one is kept")
    tool_call_parser: str = Field(
        default="",
        description="SGLang's name of how the model writes tool calls, such as qwen25 or llama3; empty = no tools. "
        "SGLang must be installed where the gateway runs",
    )
    reasoning_parser: str = Field(
        default="",
        description="SGLang's name of how the model writes its reasoning, such as qwen3 or deepseek-r1; empty = "
        "reasoning is part of the answer. SGLang must be installed where the gateway runs",
    )
    dashboard_viewers: int = Field(
        default=8, ge=0, le=1024, description="browsers that may look at /dashboard at once; 0 = it is turned off"
    )
    tokenizer_threads: int = Field(default=2, ge=1, le=64)

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: LogFormat = LogFormat.HUMAN

    @field_validator(*SHARED_OUT)
    @classmethod
    def _enough_for_all(cls, value: int, info: ValidationInfo) -> int:
        processes = info.data.get("processes", 1)
        if 0 < value < processes:
            raise ValueError(f"not enough for {processes} processes (TANDEM_GATEWAY_PROCESSES), which share it out")
        return value


def shared_out(settings: GatewaySettings, share: Share) -> GatewaySettings:
    """The settings of one of several processes: its part of what bounds the whole gateway."""
    return settings.model_copy(update={name: share.of(getattr(settings, name)) for name in SHARED_OUT})


STATUS_INTERVAL_MS: Final = 200
"""Least time between two status messages of a worker, which least_load goes by."""
