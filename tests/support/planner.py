"""Messages of gateways, to be read by a planner."""

from __future__ import annotations

from tandem.v1 import admin_pb2, common_pb2


def worker(name: str, **facts: int) -> admin_pb2.WorkerNumbers:
    """One that is up, of the role in its name."""
    role = common_pb2.Role.Value(f"ROLE_{name.partition('-')[0].upper()}")
    known = {"up": True, "known": True, "max_running": 10, "pages_total": 100, "pages_free": 100}
    return admin_pb2.WorkerNumbers(worker=common_pb2.WorkerRef(worker_id=name), role=role, **{**known, **facts})
