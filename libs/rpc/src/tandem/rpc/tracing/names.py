"""Names of spans and of their attributes: OpenTelemetry's where its conventions have one, else `tandem.*`.

docs/tracing.md says what each means.
"""

from __future__ import annotations

from typing import Final

# ---------------------------------------------------------------- attributes of the conventions

ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
OPERATION: Final = "gen_ai.operation.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_CHOICES: Final = "gen_ai.request.choice.count"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
CONVENTIONAL: Final = (
    OPERATION,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    REQUEST_MAX_TOKENS,
    REQUEST_TEMPERATURE,
    REQUEST_TOP_P,
    REQUEST_STREAM,
    REQUEST_CHOICES,
    FINISH_REASONS,
    TIME_TO_FIRST_CHUNK,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    CACHED_TOKENS,
    INPUT_MESSAGES,
    OUTPUT_MESSAGES,
)
"""Those of the GenAI conventions."""

# ---------------------------------------------------------------- our own

REQUEST_ID: Final = "tandem.request_id"
ROOM: Final = "tandem.room"
SEQUENCE: Final = "tandem.sequence"
ATTEMPT: Final = "tandem.attempt"
OUTCOME: Final = "tandem.outcome"
PREFILL_WORKER: Final = "tandem.prefill.worker"
DECODE_WORKER: Final = "tandem.decode.worker"
UNIFIED_WORKER: Final = "tandem.unified.worker"
PREFILL_CANDIDATES: Final = "tandem.prefill.candidates"
DECODE_CANDIDATES: Final = "tandem.decode.candidates"
UNIFIED_CANDIDATES: Final = "tandem.unified.candidates"
AVOIDED: Final = "tandem.avoided_workers"
PREFILL_POLICY: Final = "tandem.prefill.policy"
DECODE_POLICY: Final = "tandem.decode.policy"
UNIFIED_POLICY: Final = "tandem.unified.policy"
PREFILL_HELD_TOKENS: Final = "tandem.prefill.held_tokens"
DECODE_HELD_TOKENS: Final = "tandem.decode.held_tokens"
UNIFIED_HELD_TOKENS: Final = "tandem.unified.held_tokens"
RESUMED_TOKENS: Final = "tandem.resumed_tokens"
WORKER: Final = "tandem.worker"
PEER: Final = "tandem.peer"
RANK: Final = "tandem.rank"
CHUNK: Final = "tandem.chunk"
PAGES: Final = "tandem.pages"
PREFIX_TOKENS: Final = "tandem.prefix_tokens"
BYTES: Final = "tandem.bytes"
GB_PER_S: Final = "tandem.gb_per_s"
PROVIDER: Final = "tandem.provider"
FIRST_BUFFER: Final = "tandem.first_buffer"
BUFFERS: Final = "tandem.buffers"
CHUNKS_DROPPED: Final = "tandem.chunks_not_kept"
PRIORITY: Final = "tandem.priority"
SOURCE: Final = "tandem.first_token.source"
"""Which leg said it: prefill, decode or unified."""

# ---------------------------------------------------------------- spans

READ: Final = "read"
TOKENIZE: Final = "tokenize"
ADMISSION: Final = "admission"
ROUTE: Final = "route"
ATTEMPT_SPAN: Final = "attempt"
BACKOFF: Final = "backoff"
FIRST_TOKEN: Final = "first_token"
STREAM: Final = "stream"
TICKET: Final = "ticket"
DECODE_QUEUE: Final = "decode_queue"
GENERATE: Final = "generate"
