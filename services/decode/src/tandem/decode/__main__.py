"""Runs the decode service."""

from __future__ import annotations

from functools import partial

from tandem.decode.app import serve
from tandem.decode.settings import DecodeSettings
from tandem.rpc import logs
from tandem.rpc.run import leave, run_service


def main() -> None:
    """Entry point of tandem-decode."""
    settings = DecodeSettings.load()
    logs.setup("decode", worker_id=settings.worker_id, level=settings.log_level, log_format=settings.log_format)
    leave(run_service(partial(serve, settings)))


if __name__ == "__main__":
    main()
