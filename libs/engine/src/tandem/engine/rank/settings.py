"""Settings of a rank. The service's environment reaches every rank of its engine, so they are read from there."""

from __future__ import annotations

from pydantic import Field

from tandem.rdma.api import EndpointSettings, FaultPlan
from tandem.rpc.addresses import host_to_dial
from tandem.rpc.settings import Settings


class RankSettings(Settings, env_prefix="TANDEM_RANK_"):
    """How a rank links to others. Environment: TANDEM_RANK_<NAME>."""

    bind_host: str = Field(
        default="127.0.0.1", description="address that KvLink and the lanes of a prefill rank listen on"
    )
    advertise_host: str = Field(
        default="",
        description="host that peers dial; empty = bind_host, or the machine's own address if that is 0.0.0.0",
    )
    providers: str = Field(
        default="cma,tcp", description="data providers that may be used, best first, comma-separated"
    )
    checksum: bool = Field(default=True, description="a checksum per chunk, computed on both sides")
    tcp_streams: int = Field(default=1, ge=1, le=16, description="TCP connections per lane")
    dial_timeout_ms: int = Field(default=5_000, ge=100, le=600_000, description="longest wait for a link to open")
    ping_interval_ms: int = Field(default=1_000, ge=50, le=60_000, description="time between two pings of a link")
    ping_timeout_ms: int = Field(default=5_000, ge=100, le=600_000, description="silence after which a link is lost")
    park_timeout_ms: int = Field(
        default=5_000, ge=100, le=600_000, description="how long an offer waits for its ticket"
    )
    offer_credit: int = Field(default=4_096, ge=1, le=65_536, description="offers that may be open on one link")
    outbox_limit: int = Field(default=8_192, ge=16, le=1_000_000, description="messages that may wait on one link")
    fence_ms: int = Field(default=1_000, ge=10, le=60_000, description="longest wait for a cancelled transfer to end")
    staging_max_bytes: int = Field(
        default=0,
        ge=0,
        description="most host memory to pin as a mirror of KV pools in a GPU, which needs as much; 0 = no limit",
    )
    fault_flip_chunk: int = Field(default=-1, ge=-1, description="tests only: flip a byte of chunks with this number")
    fault_flip_times: int = Field(default=1, ge=1, description="tests only: how often to flip")
    fault_stall_bytes: int = Field(default=-1, ge=-1, description="tests only: stop reading a lane after these bytes")

    @property
    def host(self) -> str:
        """Host that peers dial. Raises OSError if this machine's address can't be found."""
        return host_to_dial(self.bind_host, self.advertise_host)

    def endpoint(self) -> EndpointSettings:
        """The data path's share of them."""
        faulty = self.fault_flip_chunk >= 0 or self.fault_stall_bytes >= 0
        return EndpointSettings(
            providers=tuple(name.strip() for name in self.providers.split(",") if name.strip()),
            bind_host=self.bind_host,
            advertise_host=self.host,
            checksum=self.checksum,
            tcp_streams=self.tcp_streams,
            connect_timeout_ms=self.dial_timeout_ms,
            fence_ms=self.fence_ms,
            faults=FaultPlan(
                flip_byte_of_chunk=self.fault_flip_chunk if self.fault_flip_chunk >= 0 else None,
                flip_times=self.fault_flip_times,
                stall_after_bytes=self.fault_stall_bytes if self.fault_stall_bytes >= 0 else None,
            )
            if faulty
            else None,
        )
