"""What the adapter does where SGLang's pools lie in a GPU, over doubles of torch's streams and of the mirror."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, Role
from tandem.engine.rank.settings import RankSettings
from tandem.rdma.api import Direction
from tests.support.sglang import installed

installed.require()

from tandem.engine.sglang import arguments, backend, device_pools, environment, hooks  # noqa: E402 (SGLang warns when it is loaded)
from tandem.engine.sglang.engine import SglangEngine  # noqa: E402

pytestmark = pytest.mark.sglang


class Event:
    """An event of torch; waiting for it on the host is noted."""

    def __init__(self, handle: int) -> None:
        self.cuda_event = handle
        self.waited = False

    def synchronize(self) -> None:
        self.waited = True


class Mirror:
    """Notes in what order the copy stream and the rank hear of things."""

    def __init__(self, rooms) -> None:
        self.heard: list[tuple[object, int]] = []
        self._rooms = rooms

    def after(self, event: int) -> None:
        self.heard.append((event, len(self._rooms.pushed) + len(self._rooms.reserved)))


@pytest.fixture
def on_gpu(manager):
    manager.device_pools = Mirror(manager.rank.rooms)
    return manager


def test_an_early_send_waits_on_the_gpu_for_the_forward_pass_and_not_on_the_scheduler(on_gpu):
    room = backend.TandemKVSender(on_gpu, "tandem:1", 5)
    room.init(2, 0)
    room._early_send_wait_event = event = Event(77)
    room.send(np.arange(1))
    room.send(np.arange(1), [])
    assert on_gpu.device_pools.heard == [(77, 0)], "once, and before the chunk is pushed"
    assert not event.waited


def test_an_early_send_of_host_pools_waits_itself(manager):
    room = backend.TandemKVSender(manager, "tandem:1", 5)
    room.init(1, 0)
    room._early_send_wait_event = event = Event(77)
    room.send(np.arange(1), [])
    assert event.waited
    assert room._early_send_wait_event is None


def test_uploads_wait_for_the_step_that_is_computed_when_pages_are_reserved(on_gpu):
    receiver = backend.TandemKVReceiver(on_gpu, "tandem:1", 5)
    on_gpu.forward_stream = SimpleNamespace(record_event=lambda: Event(9))
    receiver.send_metadata(np.arange(2), 0)
    assert on_gpu.device_pools.heard == [(9, 0)], "before the pages are offered"


def test_nothing_is_waited_for_before_the_first_step(on_gpu):
    backend.TandemKVReceiver(on_gpu, "tandem:1", 5).send_metadata(np.arange(2), 0)
    assert on_gpu.device_pools.heard == []


def test_the_scheduler_shows_where_it_computes(manager, monkeypatch):
    monkeypatch.setattr(hooks, "manager_of", lambda scheduler: manager)
    monkeypatch.setattr(hooks, "pools_of", lambda scheduler: ())
    monkeypatch.setattr(hooks, "waiting_rooms", lambda scheduler: 0)
    manager.kv_args = SimpleNamespace(state_types=[])
    silent = SimpleNamespace(kv_event_publisher=None)
    batch = SimpleNamespace(reqs=[])
    hooks.after_step(None, SimpleNamespace(running_batch=batch, forward_stream="stream", kv_events_publisher=silent))
    assert manager.forward_stream == "stream"


@pytest.fixture
def driver(monkeypatch):
    """What opens pools in a GPU, replaced by doubles; `why` is what cards say of the memory."""
    found = SimpleNamespace(why="", freed=[])
    mirror = SimpleNamespace(device=1, bytes=4096)
    direct = SimpleNamespace(device=1, pools=(), free=lambda: found.freed.append(True))
    found.mirror, found.direct = mirror, direct
    monkeypatch.setattr(device_pools, "Cuda", lambda: "driver")
    monkeypatch.setattr(device_pools, "Mirror", lambda *given: mirror if given == ((), "driver", 5) else None)
    monkeypatch.setattr(device_pools, "GpuDirect", lambda *given: direct if given == ((), "driver") else None)
    monkeypatch.setattr(device_pools, "why_not_registered", lambda buffers, settings, direction: found.why)
    return found


def opened(**settings):
    loaded = RankSettings.load(staging_max_bytes=5, **settings)
    return device_pools.open_pools("cuda", (), loaded, Direction.SEND)


def test_a_mirror_is_opened_for_a_gpu_only(driver, caplog):
    caplog.set_level(logging.INFO)
    assert device_pools.open_pools("cpu", (), RankSettings.load(), Direction.SEND) is None
    assert "moved directly" in caplog.text
    assert opened() is driver.mirror
    assert "GPU 1" in caplog.text
    assert "4096 bytes of host memory are pinned" in caplog.text
    with pytest.raises(TandemError, match="device 'xpu'") as caught:
        device_pools.open_pools("xpu", (), RankSettings.load(), Direction.SEND)
    assert caught.value.reason is ErrorReason.NOT_SUPPORTED


def test_where_verbs_is_the_only_provider_cards_reach_the_gpu(driver, caplog):
    caplog.set_level(logging.INFO)
    assert opened(providers="verbs") is driver.direct
    assert "moved by RDMA where they are, without checksums" in caplog.text
    assert opened(gpu_memory="dmabuf") is driver.direct
    assert opened(providers="verbs", gpu_memory="mirror") is driver.mirror
    assert opened(providers="verbs", checksum=True) is driver.mirror, "who asks for checksums gets them"
    assert opened(providers="verbs", checksum=False) is driver.direct
    with pytest.raises(TandemError, match="dmabuf needs verbs; the providers are tcp"):
        opened(providers="tcp", gpu_memory="dmabuf")


def test_cards_that_do_not_reach_the_gpu_leave_the_mirror(driver, caplog):
    driver.why = "the device takes no memory by a dma-buf"
    assert opened(providers="verbs") is driver.mirror
    assert "RDMA does not reach the KV pools in the GPU: the device takes no" in caplog.text
    assert driver.freed == [True]
    with pytest.raises(TandemError, match="takes no memory") as caught:
        opened(gpu_memory="dmabuf")
    assert caught.value.reason is ErrorReason.NOT_SUPPORTED


@pytest.mark.parametrize("role", PAIR)
def test_what_is_set_for_a_cpu_is_not_set_for_a_gpu(role):
    options = arguments.SglangOptions(model_path="none", device="cuda")
    args = arguments.server_args(options, role, cpu=False, extra={}, memory_bytes=1 << 40)
    assert args["device"] == "cuda"
    assert not args.keys() & (set(arguments.cpu_defaults(_unread(), role, 0)) | {"max_total_tokens"})


def _unread():
    """Options of a model that is there."""
    return arguments.SglangOptions(model_path="models/tandem-tiny")


def test_the_environment_of_a_gpu_is_left_alone(monkeypatch):
    for name in ("SGLANG_USE_CPU_ENGINE", "TORCHDYNAMO_DISABLE", "OMP_NUM_THREADS", "SGLANG_DISABLED_MODEL_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    before = dict(environment.os.environ)
    environment.prepare("unix:x", "some/model", None, ["unneeded"])
    added = environment.os.environ.keys() - before.keys()
    for name in added:
        monkeypatch.delenv(name)
    assert not {name for name in added if re.search("CPU|DYNAMO|OMP|ARCHS", name)}


def test_cuda_with_the_stand_ins_of_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "installed_for_cpu", lambda: True)
    engine = SglangEngine(Role.PREFILL, arguments.SglangOptions(model_path="none", device="cuda"))
    with pytest.raises(TandemError, match="installed for the CPU"):
        engine._prepare("unix:x")
    assert not environment.has_gpu()
