"""SGLang's KV events as ours: what is passed on, and that its hashes of pages are those that a gateway computes."""

from __future__ import annotations

import json
from array import array
from types import SimpleNamespace

import pytest

from tests.support.sglang import installed

installed.require()

import torch  # noqa: E402 (SGLang warns when it is loaded)
from sglang.srt.disaggregation.kv_events import (  # noqa: E402
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisherFactory,
    KVEventBatch,
    StorageMedium,
)
from sglang.srt.mem_cache.base_prefix_cache import InsertParams  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402
from sglang.srt.mem_cache.unified_cache.components import ComponentType  # noqa: E402
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: E402

from tandem.core.ids import Incarnation, WorkerId, WorkerLife  # noqa: E402
from tandem.core.kv_index import KvChange, KvIndex, page_hashes  # noqa: E402
from tandem.core.kv_log import KvLog  # noqa: E402
from tandem.engine.sglang import arguments, hooks, kv_events  # noqa: E402

pytestmark = pytest.mark.sglang
PAGE = 4


class Allocator:
    """Takes back the entries of pages that were there already."""

    device = "cpu"

    def free_segment(self, indices: torch.Tensor, start_pos: int) -> None:
        """Nothing to note."""


def stored(*hashes: int, medium: StorageMedium = StorageMedium.GPU) -> BlockStored:
    return BlockStored(
        block_hashes=list(hashes), parent_block_hash=None, token_ids=[], block_size=PAGE, lora_id=None, medium=medium
    )


def test_what_lies_in_the_kv_pool_is_passed_on_with_hashes_without_a_sign() -> None:
    events = [
        stored(1, -1),
        stored(5, medium=StorageMedium.CPU),
        BlockRemoved(block_hashes=[5], medium=StorageMedium.DISK),
        BlockRemoved(block_hashes=[-1], medium=StorageMedium.GPU),
        AllBlocksCleared(),
    ]
    assert list(kv_events.changes_of(events)) == [
        KvChange(0, stored=(1, 2**64 - 1)),
        KvChange(0, removed=(2**64 - 1,)),
        KvChange(0, cleared=True),
    ]


def test_sglang_makes_our_publisher_from_the_arguments_that_we_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventPublisherFactory, "_registry", dict(EventPublisherFactory._registry))
    EventPublisherFactory._registry.pop(kv_events.PUBLISHER, None)
    kv_events.register()
    options = arguments.SglangOptions("models/any", kv_events=True)
    given = arguments.server_args(options, arguments.Role.PREFILL, False, {}, 1 << 30)["kv_events_config"]
    publisher = EventPublisherFactory.create(given, 0)
    assert isinstance(publisher, kv_events.TandemPublisher)
    publisher.publish(KVEventBatch(ts=0.0, events=[stored(7)]))
    assert publisher.take() == [KvChange(0, stored=(7,))]
    assert publisher.take() == []
    without = arguments.SglangOptions("models/any", kv_events=False)
    assert "kv_events_config" not in arguments.server_args(without, arguments.Role.PREFILL, False, {}, 1 << 30)


def test_its_cache_names_pages_as_a_gateway_does() -> None:
    cache = UnifiedRadixCache(
        CacheInitParams(
            disable=False,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=Allocator(),
            page_size=PAGE,
            enable_kv_cache_events=True,
            tree_components=(ComponentType.FULL,),
        )
    )
    log, index = KvLog(1000), KvIndex(1000)
    prompts = [list(range(40)), [*range(20), *range(900, 925)], list(range(70_000, 70_008))]
    place = 0
    for prompt in prompts:
        whole = len(prompt) // PAGE * PAGE
        value = torch.arange(place, place + whole, dtype=torch.int64)
        place += whole
        cache.insert(InsertParams(key=RadixKey(array("q", prompt[:whole])), value=value))
        for change in kv_events.changes_of(cache.take_events()):
            log.apply(change)
    follower, life = log.follow(lambda: None), WorkerLife(WorkerId("p"), Incarnation(1))
    change = follower.take(1000)
    assert change is not None
    assert index.apply(life, change)
    for prompt in prompts:
        assert index.match([page_hashes(prompt, PAGE)]).most == len(prompt) // PAGE
    assert index.match([page_hashes([*range(20), 5, 5, 5, 5], PAGE)]).most == 5
    assert index.entries == 10 + 6 + 2


@pytest.mark.parametrize(
    ("publisher", "chosen", "told"), [("tandem", "python", False), ("tandem", "rust", True), ("zmq", "python", True)]
)
def test_a_cache_in_python_tells_us_nothing(
    monkeypatch: pytest.MonkeyPatch, publisher: str, chosen: str, told: bool
) -> None:
    config = json.dumps({"publisher": publisher})
    monkeypatch.setattr(kv_events, "get_observability", lambda: SimpleNamespace(kv_events_config=config))
    params = SimpleNamespace(enable_kv_cache_events=True)
    assert hooks.choose_tree(lambda _: chosen, params) == chosen
    assert params.enable_kv_cache_events is told
