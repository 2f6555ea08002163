"""Settings of a worker, whichever its role."""

from __future__ import annotations

import socket
from enum import Enum
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from tandem.core.ids import Role
from tandem.rpc.addresses import host_to_dial
from tandem.rpc.logs import LogFormat
from tandem.rpc.settings import Settings


class EngineName(Enum):
    """Engines that a worker can host."""

    SGLANG = "sglang"
    MOCK = "mock"


class WorkerSettings(Settings):
    """Subclassed by each service with its own environment prefix."""

    role: ClassVar[Role]

    worker_id: str = Field(
        default="",
        validate_default=True,
        max_length=128,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="stable name; empty = role and host name, for a single worker of its role on a host",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=0, ge=0, le=65_535, description="port to listen on; 0 = any free one")
    advertise_host: str = Field(
        default="", description="host that gateways dial; empty = host, or the machine's own address if that is 0.0.0.0"
    )
    metrics_address: str = Field(
        default="127.0.0.1:0",
        description="host:port of /metrics over plain HTTP; port 0 = any free one, empty = none",
    )
    bootstrap_address: str = Field(default="127.0.0.1:50050", description="host:port of the bootstrap service")
    engine: EngineName = Field(default=EngineName.SGLANG, description="sglang or mock")
    model_path: str = Field(default="models/tandem-tiny", description="checkpoint folder, or a Hugging Face model id")
    model_name: str = Field(default="", description="name to serve the model under; empty = last part of model_path")
    max_sessions: int = Field(default=64, ge=1, le=4_096, description="gateways that may be connected")
    max_submits: int = Field(default=4_096, ge=1, le=65_536, description="rooms that may be open")
    peer_wait_ms: int = Field(
        default=2_000, ge=0, le=60_000, description="longest wait for a peer to appear in the view"
    )
    register_timeout_ms: int = Field(
        default=60_000, ge=100, le=3_600_000, description="longest wait for bootstrap at start"
    )
    progress_timeout_ms: int = Field(
        default=1_500,
        ge=100,
        le=600_000,
        description="silence of a rank of the engine after which the worker leaves until that answers again",
    )
    drain_timeout_ms: int = Field(
        default=30_000, ge=0, le=3_600_000, description="longest wait for rooms to end at stop"
    )
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="least level to log")
    log_format: LogFormat = Field(default=LogFormat.HUMAN, description="human or json")

    @field_validator("worker_id")
    @classmethod
    def _named(cls, worker_id: str) -> str:
        return worker_id or f"{cls.role.value}-{socket.gethostname()}"

    @property
    def host_to_dial(self) -> str:
        """Host that gateways dial. Raises OSError if this machine's address can't be found."""
        return host_to_dial(self.host, self.advertise_host)

    @property
    def tokenizer_path(self) -> str:
        """Where the model's tokenizer is: an absolute path, or a Hugging Face model id."""
        return str(Path(self.model_path).resolve()) if Path(self.model_path).is_dir() else self.model_path

    @property
    def served_name(self) -> str:
        """Name that the model is served under."""
        return self.model_name or self.model_path.rstrip("/").rpartition("/")[2]
