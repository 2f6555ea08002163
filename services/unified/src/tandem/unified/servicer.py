"""UnifiedService over a WorkerHost."""

from __future__ import annotations

from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import WorkerServicer
from tandem.rpc.server import GrpcServer
from tandem.v1 import unified_pb2_grpc


def add_service(server: GrpcServer, host: WorkerHost) -> None:
    """Adds UnifiedService to a server."""
    server.add(unified_pb2_grpc.add_UnifiedServiceServicer_to_server, WorkerServicer(host), "tandem.v1.UnifiedService")
