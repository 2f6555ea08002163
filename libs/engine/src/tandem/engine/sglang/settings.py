"""Settings of the SGLang engine. Environment: TANDEM_SGLANG_<NAME>."""

from __future__ import annotations

from pydantic import Field

from tandem.engine.sglang.arguments import SglangOptions
from tandem.rpc.settings import Settings


class SglangSettings(Settings, env_prefix="TANDEM_SGLANG_"):
    """What a worker says about its SGLang engine; 0 and empty leave the choice to us."""

    device: str = Field(
        default="auto",
        pattern="^(auto|cpu|cuda)$",
        description="auto, cpu or cuda; auto: cuda with an NVIDIA driver, unless SGLang is installed for the CPU",
    )
    tp_size: int = Field(default=1, ge=1, le=1_024, description="tensor parallel ranks")
    dtype: str = Field(default="auto", description="element type of weights and KV, as SGLang names it")
    page_size: int = Field(default=0, ge=0, le=65_536, description="tokens per KV page")
    context_tokens: int = Field(default=0, ge=0, description="longest prompt plus answer")
    chunked_prefill_tokens: int = Field(default=0, ge=0, description="prompt tokens that prefill computes at once")
    max_running: int = Field(default=0, ge=0, description="sequences that run at the same time")
    max_total_tokens: int = Field(default=0, ge=0, description="tokens that the KV pool holds")
    keep_prefixes: bool = Field(
        default=False,
        description="decode keeps the KV of sequences that have ended in SGLang's radix cache: of a prompt that begins "
        "as one of them did only the rest is moved",
    )
    role_switch: bool = Field(
        default=False,
        description="prefill workers can become ones of decode while they run, and back, by `tandem switch`;"
        " decode keeps prefixes then. Not with pipeline or expert parallelism or speculative decoding",
    )
    threads_per_rank: int = Field(default=0, ge=0, le=1_024, description="CPU threads of each rank")
    kv_events: bool = Field(
        default=True, description="whether a worker knows what its prefix cache holds, which cache_aware goes by"
    )
    log_level: str = Field(default="warning", description="log level of SGLang itself")
    engine_args: tuple[str, ...] = Field(
        default=(), description='any other server argument of SGLang: a JSON list of "key=value"'
    )
    start_timeout_ms: int = Field(default=1_800_000, ge=1_000, le=86_400_000, description="longest wait for the model")

    def options(self, model_path: str, served_name: str) -> SglangOptions:
        """As the engine wants them."""
        return SglangOptions(
            model_path=model_path,
            served_name=served_name,
            device=self.device,
            tp_size=self.tp_size,
            dtype=self.dtype,
            page_size=self.page_size or None,
            context_tokens=self.context_tokens or None,
            chunked_prefill_tokens=self.chunked_prefill_tokens or None,
            max_running=self.max_running or None,
            max_total_tokens=self.max_total_tokens or None,
            keep_prefixes=self.keep_prefixes,
            role_switch=self.role_switch,
            threads_per_rank=self.threads_per_rank,
            kv_events=self.kv_events,
            log_level=self.log_level,
            engine_args=self.engine_args,
            start_timeout_ms=self.start_timeout_ms,
        )
