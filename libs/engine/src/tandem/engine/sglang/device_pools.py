"""How pools that SGLang keeps in a GPU are moved: through a mirror in host memory, or by RDMA where they lie."""

from __future__ import annotations

import logging

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.rank.cuda import Cuda
from tandem.engine.rank.gpu_direct import GpuDirect
from tandem.engine.rank.mirror import Mirror
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.settings import RankSettings
from tandem.rdma.api import Direction
from tandem.rdma.verbs.provider import why_not_registered

log = logging.getLogger(__name__)


def open_pools(
    device: str, pool_list: tuple[Pool, ...], settings: RankSettings, direction: Direction
) -> Mirror | GpuDirect | None:
    """What moves pools that lie in a GPU; None for pools in host memory, which are moved themselves. direction: what
    the rank does with them.

    Raises TandemError: NOT_SUPPORTED for any other device, or if TANDEM_RANK_GPU_MEMORY asks for what does not work;
    else as `Mirror` does.
    """
    if device == "cpu":
        log.info("the KV pools lie in host memory and are moved directly")
        return None
    if device != "cuda":
        raise TandemError(
            ErrorReason.NOT_SUPPORTED,
            f"the KV pools lie in memory of device {device!r}; those of cpu and cuda can be moved",
        )
    cuda = Cuda()
    asked = settings.gpu_memory == "dmabuf"
    # Who sets the checksum has thought about it, and gets what was set.
    chosen = settings.gpu_memory == "auto" and settings.providers == "verbs"
    if asked or (chosen and not (settings.checksum and "checksum" in settings.model_fields_set)):
        try:
            return _direct(pool_list, cuda, settings, direction)
        except TandemError as error:
            if asked:
                raise
            log.warning("RDMA does not reach the KV pools in the GPU: %s", error.message)
    mirror = Mirror(pool_list, cuda, settings.staging_max_bytes)
    log.info(
        "the KV pools lie in GPU %d and are moved through a mirror: %d bytes of host memory are pinned",
        mirror.device,
        mirror.bytes,
    )
    return mirror


def _direct(pool_list: tuple[Pool, ...], cuda: Cuda, settings: RankSettings, direction: Direction) -> GpuDirect:
    if "verbs" not in settings.providers:
        text = f"dmabuf needs verbs; the providers are {settings.providers}"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="gpu_memory")
    direct = GpuDirect(pool_list, cuda)
    try:
        buffers = [buffer for pool in direct.pools for buffer in pool.buffers]
        if why := why_not_registered(buffers, settings.verbs(), direction):
            raise TandemError(ErrorReason.NOT_SUPPORTED, why, field="gpu_memory")
    except BaseException:
        direct.free()
        raise
    log.info("the KV pools lie in GPU %d and are moved by RDMA where they are, without checksums", direct.device)
    return direct
