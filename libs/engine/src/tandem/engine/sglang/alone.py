"""A scheduler rank of SGLang that is not disaggregated: it attaches to its service and tells its numbers, no more."""

from __future__ import annotations

from typing import Any

from tandem.core.ids import RankId, Role
from tandem.core.layout import KvLayout
from tandem.engine.rank.agent import RankSetup
from tandem.engine.rank.status import Gauges
from tandem.engine.rank.threaded import ThreadedRank
from tandem.engine.sglang import environment
from tandem.engine.sglang.scheduler_gauges import kv_pool_of


class Alone:
    """One per scheduler process."""

    def __init__(self, scheduler: Any) -> None:
        """Attaches. Raises TandemError, OSError or grpc.aio.AioRpcError."""
        self._scheduler = scheduler
        self.gauges = Gauges()
        """The scheduler's numbers after its last step; the rank's thread reads them."""
        setup = RankSetup(Role.UNIFIED, rank_of_process(), layout_of(scheduler), pools=())
        self.rank = ThreadedRank(setup, environment.rank_hub_address(), lambda: self.gauges)
        self.rank.start()
        self.note(running=0)

    def note(self, running: int) -> None:
        """Reads the scheduler's numbers, on its own thread. running: requests that generate."""
        self.gauges = Gauges((kv_pool_of(self._scheduler),), running, len(self._scheduler.waiting_queue))


def rank_of_process() -> RankId:
    """Which of the engine's ranks this process is."""
    from sglang.srt.runtime_context import get_parallel

    place = get_parallel()
    return RankId(dp=place.dp_rank or 0, pp=place.pp_rank, tp=place.tp_rank)


def layout_of(scheduler: Any) -> KvLayout:
    """How the KV lies here; of no use to anybody else, so without pools."""
    runner, args = scheduler.tp_worker.model_runner, scheduler.server_args
    kv_dtype = str(runner.kv_cache_dtype_str)
    return KvLayout(
        page_size=int(scheduler.token_to_kv_pool_allocator.page_size),
        # "auto" is the model's own.
        dtype=str(scheduler.model_config.dtype).removeprefix("torch.") if kv_dtype == "auto" else kv_dtype,
        layers=int(scheduler.model_config.num_hidden_layers),
        memory_order="nhd",
        tp_size=int(args.tp_size),
        pp_size=int(args.pp_size),
        pools=(),
    )
