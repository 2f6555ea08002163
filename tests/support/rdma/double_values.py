"""What the device in software and its user tell each other, in the form of pyverbs' own classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sge:
    """One piece of local memory."""

    addr: int
    length: int
    lkey: int

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Completion:
    """Stands for WC."""

    wr_id: int
    status: int
    opcode: int = 0
    imm_data: int = 0
    qp_num: int = 0


@dataclass
class QpAttr:
    """Stands for QPAttr."""

    port_num: int = 1
    qp_state: int = 0
    qp_access_flags: int = 0
    dest_qp_num: int = 0
    rq_psn: int = 0
    sq_psn: int = 0
    pkey_index: int = 0
    path_mtu: int = 0
    max_rd_atomic: int = 0
    max_dest_rd_atomic: int = 0
    timeout: int = 0
    retry_cnt: int = 0
    rnr_retry: int = 0
    min_rnr_timer: int = 0
    ah_attr: object = None
