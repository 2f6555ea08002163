"""Entry point of one process of several: `python -m tandem.gateway.processes.child ORDER`, run by their parent only.

It ends, with drain, where its standard input ends: when the parent wants it to, or is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from tandem.core.share import Share
from tandem.gateway.app import serve
from tandem.gateway.processes.order import Order
from tandem.gateway.settings import GatewaySettings, shared_out
from tandem.gateway.siblings.place import Place
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.run import Stop, run_service

SETTLE_S: Final = 10.0
"""What one that replaces another may take to become ready before it gets requests."""


async def _serve(order: Order, stop: Stop) -> int:
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_end, stop)
    place = Place(Share(order.index, order.count), Path(order.folder))
    own = {"port": order.port, "admin_address": place.address(order.index), **order.changed}
    settings = shared_out(GatewaySettings.load(processes=order.count), place.share).model_copy(update=own)
    return await serve(settings, TlsSettings.load(), stop, place, SETTLE_S if order.replaces else 0)


def _stop_at_end(stop: Stop) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.request("the parent has asked for it, or is gone")


def main() -> None:
    """Runs the process and exits with its code."""
    order = Order.read(sys.argv[1])
    sys.exit(run_service(partial(_serve, order), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
