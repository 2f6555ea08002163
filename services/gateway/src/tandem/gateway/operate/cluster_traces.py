"""One trace, from the gateway and from every worker in its view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import TandemError
from tandem.gateway.routing.pool import SessionPool
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import as_one, kept_trace
from tandem.v1 import admin_pb2, trace_pb2, trace_pb2_grpc

TIMEOUT_S: Final = 2.0
"""A worker that has not shown its spans by then is named as silent."""


class ClusterTraces:
    """Gathers what all services keep of a trace."""

    def __init__(self, pool: SessionPool, tracing: Tracing, connect: Callable[[str], grpc.aio.Channel]) -> None:
        """connect: opens a channel to host:port."""
        self._pool = pool
        self._tracing = tracing
        self._connect = connect

    async def gather(self, asked: trace_pb2.GetTraceRequest) -> admin_pb2.AdminGetTraceResponse:
        """Raises TandemError(INVALID_ARGUMENT) if neither id is set, or it is none."""
        own = kept_trace(self._tracing, asked)
        workers = self._pool.view.workers
        answers = await asyncio.gather(*(self._of(info, asked) for info in workers.values()))
        whole = as_one([own, *(answer for answer in answers if isinstance(answer, trace_pb2.GetTraceResponse))])
        return admin_pb2.AdminGetTraceResponse(
            trace_id=whole.trace_id,
            spans=whole.spans,
            dropped_spans=whole.dropped_spans,
            silent=[
                admin_pb2.SilentWorker(worker_id=worker_id, problem=answer)
                for worker_id, answer in zip(workers, answers, strict=True)
                if isinstance(answer, str)
            ],
        )

    async def _of(self, info: WorkerInfo, asked: trace_pb2.GetTraceRequest) -> trace_pb2.GetTraceResponse | str:
        """What a worker keeps of a trace, or what was wrong."""
        try:
            async with self._connect(info.address) as channel:
                stub: Any = trace_pb2_grpc.TraceServiceStub(channel)
                answer: trace_pb2.GetTraceResponse = await stub.GetTrace(asked, timeout=TIMEOUT_S)
                return answer
        except TandemError as error:
            return error.message
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
