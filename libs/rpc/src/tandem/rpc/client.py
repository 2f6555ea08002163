"""Channels to other services."""

from __future__ import annotations

import grpc

from tandem.rpc.credentials import PLAIN, Credentials
from tandem.rpc.options import CHANNEL_OPTIONS


def open_channel(address: str, credentials: Credentials = PLAIN) -> grpc.aio.Channel:
    """A channel to host:port or unix:path, with every service's options. Connects when first used.

    The caller closes it. Must be called on the event loop that will use it. Raises INVALID_ARGUMENT where the
    credentials forbid to go there.
    """
    credentials.check_dial(address)
    tls = credentials.channel()
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    name = credentials.name_of(address)
    override = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.aio.secure_channel(address, tls, options=[*CHANNEL_OPTIONS, *override])
