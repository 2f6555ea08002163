"""Memory by a dma-buf: what can be shown without a card that takes one. Soft-RoCE takes none, and has to say so."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import Buffer, Direction, DmaBuf, EndpointSettings, VerbsSettings
from tandem.rdma.endpoint import open_endpoint
from tandem.rdma.verbs import library
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.dmabuf import DmaBufRegion, protection_domain_of

pytestmark = pytest.mark.rdma
SIZE = 4 * mmap.PAGESIZE


@dataclass
class Shown:
    """A device, some memory that is registered with it, and a descriptor of the same size."""

    device: Device
    region: Any
    address: int
    fd: int


@pytest.fixture
def shown() -> Iterator[Shown]:
    verbs = library.load()
    device = Device(verbs, verbs.device_names()[0], VerbsSettings())
    memory = mmap.mmap(-1, SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = verbs.MR(device.pd, SIZE, verbs.IBV_ACCESS_LOCAL_WRITE, address=address)
    fd = os.memfd_create("no dma-buf")
    os.ftruncate(fd, SIZE)
    yield Shown(device, region, address, fd)
    os.close(fd)
    region.close()
    device.close()


def test_the_protection_domain_is_the_one_that_libibverbs_knows(shown: Shown) -> None:
    domain = protection_domain_of(shown.region)
    verbs = ctypes.CDLL("libibverbs.so.1")
    verbs.ibv_reg_mr.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    verbs.ibv_reg_mr.restype = ctypes.c_void_p
    verbs.ibv_dereg_mr.argtypes = (ctypes.c_void_p,)
    registered = verbs.ibv_reg_mr(domain, shown.address, SIZE, 0)
    assert registered, "libibverbs takes no memory for it"
    assert verbs.ibv_dereg_mr(registered) == 0


def test_a_device_that_takes_no_dma_buf_says_so(shown: Shown) -> None:
    buffer = Buffer(shown.address, SIZE, DmaBuf(shown.fd, 0))
    with pytest.raises(TandemError, match="takes no memory by a dma-buf: ") as refused:
        DmaBufRegion(shown.region, buffer, 0)
    assert refused.value.reason is ErrorReason.NOT_SUPPORTED


async def test_an_endpoint_over_it_starts_without_verbs(shown: Shown, caplog: pytest.LogCaptureFixture) -> None:
    settings = EndpointSettings(providers=("verbs",), checksum=False, direction=Direction.RECEIVE)
    endpoint = open_endpoint([Buffer(shown.address, SIZE, DmaBuf(shown.fd, 0))], settings)
    with caplog.at_level("INFO", "tandem.rdma"):
        await endpoint.start()
    assert endpoint.offer() == []
    assert "takes no memory by a dma-buf" in caplog.text
    await endpoint.close()
