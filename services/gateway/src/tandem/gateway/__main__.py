"""Entry point of the gateway: `tandem-gateway`, or `python -m tandem.gateway`."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import uvloop

from tandem.gateway.settings import GatewaySettings
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.run import run_service


def main() -> None:
    """Runs the service and exits with its code."""
    parser = argparse.ArgumentParser(
        prog="tandem-gateway", description="A gateway. Its settings are read from the environment."
    )
    parser.add_argument("--processes", metavar="N", help="wins over TANDEM_GATEWAY_PROCESSES")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    settings, tls = GatewaySettings.load(**given), TlsSettings.load()
    # Neither needs what the other loads: a parent, which serves no requests, stays small.
    if settings.processes > 1:
        from tandem.gateway.processes.parent import serve_all

        sys.exit(run_service(partial(serve_all, settings, tls)))
    from tandem.gateway.app import serve

    sys.exit(run_service(partial(serve, settings, tls), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
