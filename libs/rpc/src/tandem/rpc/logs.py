"""Logging: one line per record, for people or as JSON, each with service, worker, request and trace."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import Enum
from typing import TextIO

request_id: ContextVar[str] = ContextVar("tandem_request_id", default="")
"""Request that the running task works for, or empty."""

trace_id: ContextVar[str] = ContextVar("tandem_trace_id", default="")
"""Trace of that request, 32 hexadecimal digits, or empty."""


def about(request: str, trace: str) -> None:
    """What the running task, and those that it starts, log from now on is about this request."""
    request_id.set(request)
    trace_id.set(trace)


class LogFormat(Enum):
    """How log lines look."""

    HUMAN = "human"
    JSON = "json"


class _Context(logging.Filter):
    """Puts service, worker, request and trace on every record; a record's own, given as `extra`, stay."""

    def __init__(self, service: str, worker_id: str) -> None:
        super().__init__()
        self.service = service
        self.worker_id = worker_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.service = self.service
        record.worker_id = self.worker_id
        record.request_id = getattr(record, "request_id", "") or request_id.get()
        record.trace_id = getattr(record, "trace_id", "") or trace_id.get()
        return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _HumanFormatter(logging.Formatter):
    """`time LEVEL service/worker [request trace] logger: text`, traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        fields = record.__dict__
        who = "/".join(part for part in (fields.get("service", ""), fields.get("worker_id", "")) if part)
        known = " ".join(part for part in (fields.get("request_id", ""), fields.get("trace_id", "")) if part)
        request = f" [{known}]" if known else ""
        line = f"{_time(record)} {record.levelname} {who}{request} {record.name}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "service": record.__dict__.get("service", ""),
            "worker_id": record.__dict__.get("worker_id", ""),
            "request_id": record.__dict__.get("request_id", ""),
            "trace_id": record.__dict__.get("trace_id", ""),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def setup(
    service: str,
    *,
    worker_id: str = "",
    level: str = "INFO",
    log_format: LogFormat = LogFormat.HUMAN,
    stream: TextIO | None = None,
) -> None:
    """Replaces the root logger's handlers. Logs go to stderr unless `stream` says otherwise."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_Context(service, worker_id))
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
