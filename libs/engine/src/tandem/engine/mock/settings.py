"""Settings of the mock engine."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tandem.rpc.settings import Settings


class MockSettings(Settings, env_prefix="TANDEM_MOCK_"):
    """What the mock engine pretends to be. Environment: TANDEM_MOCK_<NAME>."""

    model: str = Field("mock", min_length=1, description="name under which the model is served")
    tp_size: int = Field(1, ge=1, le=64, description="tensor parallel ranks")
    page_size: int = Field(16, ge=1, le=65_536, description="tokens per page")
    pages: int = Field(4_096, ge=1, le=1 << 22, description="pages in the KV pool of each rank")
    metadata_rows: int = Field(512, ge=1, le=65_536, description="metadata rows of each rank")
    layers: int = Field(2, ge=1, le=4_096, description="layers of the model")
    head_bytes: int = Field(64, ge=8, le=65_536, multiple_of=8, description="bytes of K, or V, per token, layer, rank")
    context_tokens: int = Field(8_192, ge=2, le=1 << 22, description="longest prompt plus answer, in tokens")
    chunk_tokens: int = Field(2_048, ge=1, le=1 << 22, description="prompt tokens that prefill computes at once")
    layers_per_push: int = Field(
        0, ge=0, le=4_096, description="layers that prefill pushes as soon as they are computed; 0 = all of a chunk"
    )
    keep_prefixes: bool = Field(
        False,
        description="decode keeps the KV of sequences that have ended, as long as nothing else needs their pages: of a "
        "prompt that begins as one of them did only the rest is moved",
    )
    prefix_cache: bool = Field(
        False, description="prefill keeps the pages of prompts, and computes what prompts begin with alike only once"
    )
    max_running: int = Field(256, ge=1, le=65_536, description="rooms that hold pages at the same time")
    max_waiting: int = Field(4_096, ge=1, le=65_536, description="rooms that may wait for a peer or for pages")
    vocab: int = Field(32_768, ge=2, le=1 << 20, description="tokens of the built-in vocabulary; token 0 ends the text")
    says_end: bool = Field(True, description="answers may hold the token that ends the text, as any other one")
    tokenizer_path: Path | None = Field(None, description="folder with a tokenizer.json whose tokens to emit instead")
    prefill_us_per_token: float = Field(10.0, ge=0, le=1e6, description="prefill's time per prompt token")
    decode_us_per_admission: float = Field(
        0.0, ge=0, le=1e8, description="decode's time before it gives pages to the rooms that wait for them"
    )
    decode_us_per_step: float = Field(2_000.0, ge=0, le=1e8, description="decode's time per step")
    decode_us_per_sequence: float = Field(10.0, ge=0, le=1e6, description="decode's time per step and sequence")
    close_timeout_ms: int = Field(5_000, ge=0, le=600_000, description="longest wait for open rooms to end at close")
