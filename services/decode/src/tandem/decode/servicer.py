"""DecodeService over a WorkerHost."""

from __future__ import annotations

from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import WorkerServicer
from tandem.rpc.server import GrpcServer
from tandem.v1 import decode_pb2_grpc


def add_service(server: GrpcServer, host: WorkerHost) -> None:
    """Adds DecodeService to a server."""
    server.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, WorkerServicer(host), "tandem.v1.DecodeService")
