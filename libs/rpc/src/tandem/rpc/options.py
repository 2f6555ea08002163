"""gRPC options that servers and channels share."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 1 << 20
"""Longest message that the protocols allow; longer ones are continued."""

RECEIVE_SLACK_BYTES: Final = 64 << 10
"""Room above MAX_MESSAGE_BYTES, for the framing of a payload that is just as long."""

KEEPALIVE_TIME_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000

Option = tuple[str, str | int]

_SHARED: Final[tuple[Option, ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + RECEIVE_SLACK_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + RECEIVE_SLACK_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC gives a ping 60 s more by itself, whatever the keepalive timeout says.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    *_SHARED,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
    # Two servers on one port are a mistake, never load balancing.
    ("grpc.so_reuseport", 0),
)

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    *_SHARED,
    # A worker that comes back on its old port must be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
