"""Settings of a rank. The service's environment reaches every rank of its engine, so they are read from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from tandem.core import version
from tandem.core.version import Feature
from tandem.rdma.api import Direction, EndpointSettings, FaultPlan, VerbsSettings
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
        default="cma,verbs,tcp", description="data providers that may be used, best first, comma-separated"
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
    gpu_memory: Literal["auto", "mirror", "dmabuf"] = Field(
        default="auto",
        description="KV pools in a GPU: mirror = copied through host memory; dmabuf = RDMA in the GPU, unchecked; "
        "auto = dmabuf where verbs is the only provider and it works, else mirror",
    )
    staging_max_bytes: int = Field(
        default=0,
        ge=0,
        description="most host memory to pin as a mirror of KV pools in a GPU, which needs as much; 0 = no limit",
    )
    verbs_devices: str = Field(
        default="", description="RDMA devices to use, comma-separated; empty = every one with an active port"
    )
    verbs_port: int = Field(default=1, ge=1, le=255, description="port of each RDMA device")
    verbs_gid_index: int = Field(
        default=-1,
        ge=-1,
        le=65_535,
        description="entry of the port's GID table; -1 chooses, RoCE v2 over IPv4 first",
    )
    verbs_pkey_index: int = Field(default=0, ge=0, le=65_535, description="entry of the port's partition key table")
    verbs_mtu: int = Field(
        default=0, ge=0, le=5, description="largest path MTU, 1 = 256 bytes to 5 = 4096; 0 = the port's"
    )
    verbs_service_level: int = Field(default=0, ge=0, le=15, description="InfiniBand service level")
    verbs_traffic_class: int = Field(default=0, ge=0, le=255, description="RoCE traffic class (DSCP and ECN)")
    verbs_timeout: int = Field(default=14, ge=1, le=31, description="wait for an acknowledgement, 4.096 us * 2^timeout")
    verbs_retry_cnt: int = Field(default=6, ge=0, le=6, description="repeats after that wait")
    verbs_rnr_retry: int = Field(default=6, ge=0, le=6, description="repeats while the peer is not ready to receive")
    verbs_piece_bytes: int = Field(
        default=8 << 20, ge=4096, le=1 << 30, description="bytes that go over one RDMA device together"
    )
    verbs_window_bytes: int = Field(
        default=16 << 20, ge=4096, le=1 << 40, description="bytes under way on one RDMA device of a lane"
    )
    verbs_posting: Literal["auto", "batch", "reference"] = Field(
        default="auto", description="how RDMA writes are posted: batch = whole chains, reference = one by one"
    )
    fault_flip_chunk: int = Field(default=-1, ge=-1, description="tests only: flip a byte of chunks with this number")
    fault_flip_times: int = Field(default=1, ge=1, description="tests only: how often to flip")
    fault_flip_tp: int = Field(default=-1, ge=-1, description="tests only: flip on this tp rank only, -1 = on all")
    fault_stall_bytes: int = Field(default=-1, ge=-1, description="tests only: stop reading a lane after these bytes")
    fault_stall_chunk: int = Field(default=-1, ge=-1, description="tests only: stop reading a lane in these chunks")
    fault_stall_tp: int = Field(default=-1, ge=-1, description="tests only: stop on this tp rank only, -1 = on all")
    fault_pace_ms: int = Field(default=0, ge=0, description="tests only: wait before each piece of a chunk")

    @property
    def host(self) -> str:
        """Host that peers dial. Raises OSError if this machine's address can't be found."""
        return host_to_dial(self.bind_host, self.advertise_host)

    @property
    def protocol(self) -> version.Protocol:
        """What this rank speaks: a side that makes no checksums can compare none."""
        left_out = Feature.NONE if self.checksum else Feature.CHUNK_CHECKSUM
        return replace(version.CURRENT, features=version.CURRENT.features & ~left_out)

    def verbs(self) -> VerbsSettings:
        """The share of the provider `verbs`."""
        return VerbsSettings(
            devices=_names(self.verbs_devices),
            port=self.verbs_port,
            gid_index=self.verbs_gid_index,
            pkey_index=self.verbs_pkey_index,
            mtu=self.verbs_mtu,
            service_level=self.verbs_service_level,
            traffic_class=self.verbs_traffic_class,
            timeout=self.verbs_timeout,
            retry_cnt=self.verbs_retry_cnt,
            rnr_retry=self.verbs_rnr_retry,
            piece_bytes=self.verbs_piece_bytes,
            window_bytes=self.verbs_window_bytes,
            posting=self.verbs_posting,
        )

    def faults(self, tp: int) -> FaultPlan | None:
        """What tests have planted in a rank, if anything."""
        flips, stalls = self.fault_flip_tp in (-1, tp), self.fault_stall_tp in (-1, tp)
        plan = FaultPlan(
            flip_byte_of_chunk=self.fault_flip_chunk if flips and self.fault_flip_chunk >= 0 else None,
            flip_times=self.fault_flip_times,
            stall_after_bytes=self.fault_stall_bytes if stalls and self.fault_stall_bytes >= 0 else None,
            stall_at_chunk=self.fault_stall_chunk if stalls and self.fault_stall_chunk >= 0 else None,
            pace_ms=self.fault_pace_ms,
        )
        return None if plan == FaultPlan(flip_times=self.fault_flip_times) else plan

    def endpoint(self, direction: Direction, tp: int = 0) -> EndpointSettings:
        """The data path's share of them. direction: what the rank does with its memory. tp: its number."""
        return EndpointSettings(
            providers=_names(self.providers),
            bind_host=self.bind_host,
            advertise_host=self.host,
            checksum=self.checksum,
            tcp_streams=self.tcp_streams,
            connect_timeout_ms=self.dial_timeout_ms,
            fence_ms=self.fence_ms,
            direction=direction,
            verbs=self.verbs(),
            faults=self.faults(tp),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
