"""Entry point of the bootstrap service: `tandem-bootstrap`, or `python -m tandem.bootstrap`."""

from __future__ import annotations

import sys

from tandem.bootstrap.app import serve
from tandem.bootstrap.settings import BootstrapSettings
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.run import run_service


def main() -> None:
    """Runs the service and exits with its code."""
    settings, tls = BootstrapSettings.load(), TlsSettings.load()
    sys.exit(run_service(lambda stop: serve(settings, tls, stop)))


if __name__ == "__main__":
    main()
