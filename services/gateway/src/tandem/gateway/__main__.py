"""Entry point of the gateway: `tandem-gateway`, or `python -m tandem.gateway`."""

from __future__ import annotations

import sys

import uvloop

from tandem.gateway.app import main as run_gateway
from tandem.rpc.run import run_service


def main() -> None:
    """Runs the service and exits with its code."""
    sys.exit(run_service(run_gateway, loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
