"""Tandem as SGLang's KV transfer backend: everything that touches the internals of its disaggregation.

Runs in each scheduler process. The main path, prefill on the left and decode on the right:

    TandemKVSender()                         TandemKVReceiver()             -> handles of the rank agent
    poll()                                   poll()                         reads the room machine's phase, never blocks
      BOOTSTRAPPING until the offer comes    send_metadata(pages, row)      -> offer
      WAITING: init(pages, row)
    send(pages) per finished chunk           ...                            -> push
    send(pages, states) with the last one
    poll() SUCCESS, the KV has landed        poll() SUCCESS, it is verified

Pools in a GPU are moved through a mirror in host memory (tandem.engine.rank.mirror), by copies on a stream of their
own: the GPU has to be done with a page when it comes to us. For a send SGLang sees to that, as its own backends read
pages at once: it has waited, on the host, for the forward pass that wrote them, or it leaves an event with the sender.
For reserved pages it does not: see `TandemKVManager.order_uploads`.

Built on SGLang's base classes, so that its HTTP bootstrap and ZMQ handshake never run. SGLang changes this code with
every release: tests/unit/sglang holds what is relied on here against the installed one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sglang.srt.arg_groups.overrides import model_config_of
from sglang.srt.disaggregation.base.conn import (
    BaseKVBootstrapServer,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    KVArgs,
    KVPoll,
    KVTransferDestination,
    KVTransferMetric,
)
from sglang.srt.disaggregation.utils import DisaggregationMode, KVClassType

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, Role, RoomId
from tandem.core.room.events import Phase, Why
from tandem.engine.rank.agent import DIRECTION_OF_ROLE, RankSetup
from tandem.engine.rank.gpu_direct import GpuDirect
from tandem.engine.rank.handles import ReceiverHandle, RoomHandle, SenderHandle
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.settings import RankSettings
from tandem.engine.rank.staging import DIRECT
from tandem.engine.rank.status import Gauges
from tandem.engine.rank.threaded import ThreadedRank
from tandem.engine.sglang import device_pools, environment, pools, tags
from tandem.engine.sglang.wake import Wake

log = logging.getLogger(__name__)

POLL_OF_PHASE: Final[dict[Phase, int]] = {
    Phase.BOOTSTRAPPING: KVPoll.Bootstrapping,
    Phase.WAITING: KVPoll.WaitingForInput,
    Phase.TRANSFERRING: KVPoll.Transferring,
    Phase.SUCCESS: KVPoll.Success,
    Phase.FAILED: KVPoll.Failed,
}
ROLE_OF_MODE: Final = {DisaggregationMode.PREFILL: Role.PREFILL, DisaggregationMode.DECODE: Role.DECODE}
ENDED: Final = (Phase.SUCCESS, Phase.FAILED)
OTHER_RANK: Final = Why(ErrorReason.TRANSFER_FAILED, "the room failed on another rank of this engine")
ABORTED: Final = Why(ErrorReason.CANCELLED, "aborted in the engine")


class KvRoomFailed(Exception):
    """What SGLang wants raised for a failed room; its text carries the reason to the service."""

    def __init__(self, why: Why | None) -> None:
        self.is_from_another_rank = why is None
        """SGLang logs these quietly."""
        self.why = why or OTHER_RANK
        self.failure_reason = self.why.message
        super().__init__(tags.write(self.why))


class PrefillPeer:
    """What SGLang asks about a prefill server before it prepares a room; the ticket has settled all of it already."""

    dp_size = 1
    follow_bootstrap_room = True


class PrefillPeers:
    """Stands for SGLang's table of prefill servers: every one is known."""

    _any = PrefillPeer()

    def get(self, bootstrap_addr: str) -> PrefillPeer:
        """The peer at an address."""
        return self._any


class TandemKVManager(BaseKVManager):  # type: ignore[misc]
    """One per scheduler rank: its pools, and the rank agent in a thread of its own."""

    supports_deferred_decode_kv_release = True
    enable_deferred_decode_kv_release = True
    supports_role_switch = True

    def __init__(
        self,
        args: KVArgs,
        disaggregation_mode: DisaggregationMode,
        server_args: Any,
        is_mla_backend: bool | None = False,
    ) -> None:
        self.kv_args = args
        self.role = ROLE_OF_MODE[disaggregation_mode]
        self.prefill_info_table = PrefillPeers()
        self.wake = Wake()
        """Set whenever a room changes; the idle scheduler waits for it."""
        self.receivers: dict[RoomId, TandemKVReceiver] = {}
        """Decode rooms whose pages may still be written."""
        self.gauges = Gauges()
        """The scheduler's numbers after its last step; the agent's thread reads them."""
        self.sleeper: Any = None
        """SGLang's idle sleeper that knows the bell."""
        self.forward_stream: Any = None
        """Stream that SGLang computes on, once its scheduler has made a step."""
        self.settings = RankSettings.load()
        pool_list = pools.pools_of(args)
        self.device_pools = device_pools.open_pools(
            server_args.device, pool_list, self.settings, DIRECTION_OF_ROLE[self.role]
        )
        """Pools that lie in a GPU; None for pools in host memory."""
        self.rank = self._start_rank(server_args, pool_list)

    def _start_rank(self, server_args: Any, pool_list: tuple[Pool, ...]) -> ThreadedRank:
        settings, staging = self.settings, self.device_pools
        if staging is not None:
            pool_list = staging.pools
        if isinstance(staging, GpuDirect):
            settings = settings.model_copy(update={"providers": "verbs", "checksum": False})
        args = self.kv_args
        rank = ThreadedRank(
            RankSetup(
                role=self.role,
                rank=RankId(dp=args.system_dp_rank or 0, pp=args.pp_rank, tp=args.engine_rank),
                layout=pools.layout_of(args, pool_list, server_args, model_config_of(server_args)),
                pools=pool_list,
                settings=settings,
                staging=staging or DIRECT,
            ),
            environment.rank_hub_address(),
            lambda: self.gauges,
        )
        rank.start()
        return rank

    def teardown(self) -> None:
        """SGLang takes another role, for which it makes another manager: this one lets go of all that it has."""
        self.rank.close()
        if self.sleeper is not None:
            self.sleeper.poller.unregister(self.wake.fd)
        self.wake.close()

    def order_uploads(self) -> None:
        """Decode, on a GPU: what is written to pages from now on waits for what is computed at this moment.

        SGLang's overlap scheduler frees the pages of a finished sequence while one more step is under way that writes
        a token to them, and the pages that it reserves may be among these.
        """
        if self.device_pools is not None and self.forward_stream is not None:
            self.device_pools.after(self.forward_stream.record_event().cuda_event)

    def register_to_bootstrap(self) -> None:
        """Nothing: the service registers the worker once every rank is there."""

    def try_ensure_parallel_info(self, bootstrap_addr: str) -> bool:
        """Whether a prefill server's layout is known: the registry has compared it with ours."""
        return True

    def is_abort_release_safe(self, bootstrap_room: int, required_acks: int) -> bool:
        """Whether no byte can land any more on the pages of a failed room of this rank."""
        receiver = self.receivers.get(RoomId(bootstrap_room))
        return receiver is None or receiver.is_abort_release_safe()

    def clear_deferred_abort_state(self, bootstrap_room: int) -> None:
        """SGLang has released a failed room's pages."""
        self.receivers.pop(RoomId(bootstrap_room), None)


class _Room:
    """What both sides of a room share. SGLang calls the public methods on its scheduler thread."""

    def __init__(self, mgr: TandemKVManager, handle: RoomHandle) -> None:
        self.kv_mgr = mgr
        self.begun = False
        """Whether SGLang has taken the room out of its queue for rooms that bootstrap."""
        handle.on_change = mgr.wake.set

    handle: RoomHandle

    def poll(self) -> int:
        """The room machine's phase, as SGLang names it.

        A room that fences before it has begun is transferring to the machine. SGLang's queues before the transfer know
        no such state, and its scheduler dies of it: there the room is still bootstrapping.
        """
        if self.handle.phase is Phase.TRANSFERRING and not self.begun:
            return int(KVPoll.Bootstrapping)
        return POLL_OF_PHASE[self.handle.phase]

    def failure_exception(self) -> None:
        """Raises why the room failed."""
        raise KvRoomFailed(self.handle.why)

    def abort(self, why: Why = ABORTED) -> None:
        """Gives the room up; poll() says Failed once nothing of it moves any more."""
        self.handle.abort(why.reason, why.message, by_peer=why.by_peer)


class TandemKVSender(_Room, BaseKVSender):  # type: ignore[misc]
    """Prefill's side of a room."""

    def __init__(
        self,
        mgr: TandemKVManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ) -> None:
        self.handle: SenderHandle = mgr.rank.sender(RoomId(bootstrap_room))
        super().__init__(mgr, self.handle)
        self._pages_left: int | None = None
        self._metadata_row: int | None = None
        self._pushed = False
        self._early_send_wait_event: Any = None
        """Set by SGLang's overlap scheduler: the forward pass that still writes the pages of the next send."""

    def pop_decode_prefix_len(self) -> int:
        """Prompt tokens that decode holds already."""
        return self.handle.decode_prefix_len

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """How many pages will be sent, and the metadata row that goes with the last."""
        self.begun = True
        self._pages_left = num_kv_indices
        self._metadata_row = aux_index

    def should_send_kv_chunk(self, num_pages: int, last_chunk: bool) -> bool:
        """Whether a chunk is worth a send: the last always is, for its metadata."""
        return num_pages > 0 or last_chunk

    def send(
        self,
        kv_indices: npt.NDArray[np.int32],
        state_indices: Sequence[Any] | None = None,
        num_kv_tokens: int | None = None,
    ) -> None:
        """Moves one finished chunk. SGLang gives the states, if only an empty list, with the last one."""
        event, self._early_send_wait_event = self._early_send_wait_event, None
        if event is not None and self.kv_mgr.device_pools is not None:
            self.kv_mgr.device_pools.after(event.cuda_event)  # on the GPU: the scheduler goes on
        elif event is not None:
            event.synchronize()
        if self._pages_left is None or len(kv_indices) > self._pages_left:
            raise TandemError(
                ErrorReason.PROTOCOL_VIOLATION, f"SGLang sends {len(kv_indices)} pages, {self._pages_left} are left"
            )
        last = state_indices is not None
        self._pages_left -= len(kv_indices)
        if last and self._pages_left:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"SGLang kept {self._pages_left} pages of a room back")
        self._pushed = True
        self.handle.push(
            entries(kv_indices),
            state_entries(state_indices),
            last=last,
            metadata_row=self._metadata_row if last else None,
        )

    def settle(self) -> bool:
        """For a room that failed on some rank: fences this rank's share too. True once nothing of it moves."""
        if self.handle.phase in ENDED:
            return True
        self.abort(OTHER_RANK)
        return False

    def wait_quiet(self, timeout_ms: int) -> bool:
        """After abort(): waits until no page of the room is read any more. False if that took too long."""
        if not self._pushed:
            return True
        return self.kv_mgr.wake.wait_until(lambda: self.handle.phase in ENDED, timeout_ms)

    @property
    def held(self) -> int:
        """What poll() would say of a failed room that must not be released yet: a state that SGLang waits in."""
        return int(KVPoll.Transferring if self.begun else KVPoll.Bootstrapping)

    def get_transfer_metric(self) -> KVTransferMetric:
        """For SGLang's metrics."""
        return KVTransferMetric(transfer_latency_s=self.handle.elapsed_s, transfer_total_bytes=self.handle.bytes_moved)

    def clear(self) -> None:
        """SGLang is done with the room."""
        self.handle.clear()


class TandemKVReceiver(_Room, BaseKVReceiver):  # type: ignore[misc]
    """Decode's side of a room."""

    require_staging = False
    conclude_state = None

    def __init__(self, mgr: TandemKVManager, bootstrap_addr: str, bootstrap_room: int | None = None) -> None:
        if bootstrap_room is None:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"a request to {bootstrap_addr} without a room")
        self.room = RoomId(bootstrap_room)
        self.handle: ReceiverHandle = mgr.rank.receiver(self.room)
        super().__init__(mgr, self.handle)
        self.bootstrap_infos: tuple[str, ...] = (bootstrap_addr,)
        """SGLang counts the prefill ranks that must acknowledge an abort; our own fence stands for all of them."""
        self.abort_notified = False
        """Whether the room is being given up here; from then on SGLang holds its pages until that is safe."""

    def init(self, prefill_dp_rank: int) -> None:
        """Nothing: the ticket knows the prefill rank."""

    def send_metadata(
        self,
        kv_indices: npt.NDArray[np.int32],
        aux_index: int | None = None,
        state_indices: Sequence[Any] | None = None,
        decode_prefix_len: int | None = None,
        destination: KVTransferDestination = KVTransferDestination.DEVICE,
    ) -> None:
        """Offers the reserved pages to prefill."""
        if aux_index is None or destination != KVTransferDestination.DEVICE:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"a room without a metadata row, or into {destination}")
        self.begun = True
        if self.abort_notified:
            return
        self.kv_mgr.receivers[self.room] = self
        self.kv_mgr.order_uploads()
        self.handle.offer(
            entries(kv_indices),
            state_entries(state_indices),
            metadata_row=aux_index,
            decode_prefix_len=decode_prefix_len or 0,
        )

    def abort(self, why: Why = ABORTED) -> None:
        """Gives the room up; poll() says Failed once no byte can land any more."""
        self.abort_notified = True
        super().abort(why)

    def ensure_abort_notified(self, *, force_arm: bool = False) -> None:
        """The room failed on some rank: fence this rank's share too, so that all can release their pages."""
        if not self.abort_notified:
            self.abort(OTHER_RANK)

    def is_abort_release_safe(self) -> bool:
        """Whether no byte can land on the room's pages any more."""
        return self.handle.quiet or self.handle.phase in ENDED

    def clear(self) -> None:
        """SGLang is done with the room."""
        self.kv_mgr.receivers.pop(self.room, None)
        self.handle.clear()


class TandemKVBootstrapServer(BaseKVBootstrapServer):  # type: ignore[misc]
    """In place of SGLang's HTTP server: does nothing and listens nowhere."""

    def __init__(self, host: str, port: int) -> None:
        log.debug("SGLang's bootstrap server on %s:%s is not started", host, port)


CLASSES: Final[dict[KVClassType, type]] = {
    KVClassType.MANAGER: TandemKVManager,
    KVClassType.SENDER: TandemKVSender,
    KVClassType.RECEIVER: TandemKVReceiver,
    KVClassType.BOOTSTRAP_SERVER: TandemKVBootstrapServer,
}


def entries(indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Page indices as an array of our own: on a CPU SGLang hands out views of its request table."""
    return np.array(indices, dtype=np.int64).ravel()


def state_entries(states: Sequence[Any] | None) -> list[npt.NDArray[np.int64] | None]:
    """One index array per state component, None where a component has nothing to move."""
    return [None if state is None else entries(state) for state in states or ()]


def poll_senders(original: Callable[..., list[int]], pollers: Sequence[Any], cp_group: Any, tp_group: Any) -> list[int]:
    """Around SGLang's collective poll of prefill rooms: Failed only once every rank's share is quiet.

    SGLang takes the smallest state over all ranks, so one rank's failure would release the pages of another whose
    lane still reads them.
    """
    from sglang.srt.disaggregation.utils import all_reduce_flags
    from torch.distributed import ReduceOp

    polls: list[int] = original(pollers, cp_group, tp_group)
    failed = [i for i, poll in enumerate(polls) if poll == KVPoll.Failed and isinstance(pollers[i], TandemKVSender)]
    if not failed:
        return polls
    quiet = [int(pollers[i].settle()) for i in failed]
    for group in (tp_group, cp_group):
        quiet = all_reduce_flags(quiet, group, ReduceOp.MIN)
    for i, done in zip(failed, quiet, strict=True):
        if not done:
            polls[i] = pollers[i].held
    return polls
