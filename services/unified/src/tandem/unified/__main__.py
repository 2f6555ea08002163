"""Runs the unified service."""

from __future__ import annotations

from functools import partial

from tandem.rpc import logs
from tandem.rpc.run import leave, run_service
from tandem.unified.app import serve
from tandem.unified.settings import UnifiedSettings


def main() -> None:
    """Entry point of tandem-unified."""
    settings = UnifiedSettings.load()
    logs.setup("unified", worker_id=settings.worker_id, level=settings.log_level, log_format=settings.log_format)
    leave(run_service(partial(serve, settings)))


if __name__ == "__main__":
    main()
