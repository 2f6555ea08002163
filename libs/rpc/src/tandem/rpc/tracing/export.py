"""Export by OTLP over gRPC: in a thread of its own, from a bounded queue, so that no request waits for a collector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tandem.rpc.tracing.settings import TraceSettings

log = logging.getLogger(__name__)

_NOISY: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)
"""They say for each batch what is said here once."""


class SayOnce(SpanExporter):
    """An exporter that tells once that nothing gets through, and once that it does again."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._failing = False
        self._closing = False

    def closing(self) -> None:
        """The service ends: one more batch that fails is the last that is tried."""
        self._closing = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch, in the exporter's thread; what can't be sent is dropped."""
        if self._closing and self._failing:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._failing:
                log.info("the collector at %s takes spans again", self._endpoint)
            self._failing = False
        elif not self._failing:
            self._failing = True
            log.warning("spans do not reach the collector at %s and are dropped until they do", self._endpoint)
        return result

    def shutdown(self) -> None:
        """Ends it."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here."""
        return self._inner.force_flush(timeout_millis)


def exporter_of(settings: TraceSettings) -> SayOnce:
    """An exporter to the endpoint of the settings, which connects when it first has something to send."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    inner = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.export_timeout_ms / 1000)
    return SayOnce(inner, settings.endpoint)


def batches_of(settings: TraceSettings, exporter: SpanExporter) -> BatchSpanProcessor:
    """Collects spans into batches for it."""
    return BatchSpanProcessor(
        exporter,
        max_queue_size=settings.export_queue_spans,
        schedule_delay_millis=settings.export_delay_ms,
        max_export_batch_size=min(settings.export_batch_spans, settings.export_queue_spans),
    )
