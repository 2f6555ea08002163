"""What wraps SGLang's scheduler: each hook gets what the wrapped function got; `plugin` says where it sits.

Light to import, since every process of SGLang does: the backend itself is loaded when a hook first runs.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tandem.engine.rank.status import Gauges
from tandem.engine.sglang.pools import state_names
from tandem.engine.sglang.scheduler_gauges import pools_of, state_pools_of, waiting_rooms
from tandem.engine.sglang.translate import EARLY_FIRST_TOKEN

if TYPE_CHECKING:
    from tandem.engine.rank.threaded import ThreadedRank
    from tandem.engine.sglang.backend import TandemKVManager

log = logging.getLogger(__name__)

LONE_MODE: Final = "null"
"""SGLang's name for what is not disaggregated."""
ALONE: Final = "tandem_alone"
"""Name under which such a scheduler holds what tells of it."""

NAP_MS: Final = 20
"""Longest sleep of an idle scheduler whose rooms wait for the network; the bell ends it earlier."""
NAP_WITH_PEERS_MS: Final = 1
"""The same where other ranks step together with this one: a room of theirs does not ring its bell."""


def get_kv_class(original: Callable[..., Any], transfer_backend: Any, class_type: Any) -> Any:
    """Around SGLang's table of backends: knows ours too."""
    from sglang.srt.disaggregation.utils import KVClassType

    if transfer_backend.value != "tandem" or class_type == KVClassType.KVARGS:
        return original(transfer_backend, class_type)
    from tandem.engine.sglang import backend

    return backend.CLASSES[class_type]


def poll_senders(original: Callable[..., list[int]], pollers: Sequence[Any], cp: Any, tp: Any) -> list[int]:
    """Around the collective poll of prefill rooms; see backend.poll_senders."""
    from tandem.engine.sglang import backend

    return backend.poll_senders(original, pollers, cp, tp)


def quiet_request(scheduler: Any, req: Any) -> None:
    """Before SGLang releases an aborted prompt's pages at once: waits until none of them is read any more.

    Chunks may be on their way already. The wait is as long as a cancel takes, at most the fence's limit.
    """
    from tandem.engine.sglang import backend

    sender = getattr(req, "disagg_kv_sender", None)
    if not isinstance(sender, backend.TandemKVSender):
        return
    sender.abort()
    limit_ms = 2 * sender.kv_mgr.settings.fence_ms
    if not sender.wait_quiet(limit_ms):
        log.error("room %d is still read %d ms after its abort", sender.handle.room, limit_ms)


def quiet_chunked(scheduler: Any) -> None:
    """Before SGLang releases the aborted prompt that it computes in chunks."""
    req = scheduler._pending_chunked_abort_req
    if req is not None and scheduler.chunked_req is req:
        quiet_request(scheduler, req)


def after_chunk(result: Any, scheduler: Any, req: Any, last_chunk: bool = False, *args: Any, **kwargs: Any) -> None:
    """After a chunk of a prompt is on its way: with the last one, what is known now goes to whoever waits for it."""
    if last_chunk:
        note_compute(req)
        say_first_token(result, scheduler, req, last_chunk)


def note_compute(req: Any) -> None:
    """Tells the room, for its trace, when SGLang began to compute the prompt: by the monotonic clock."""
    from tandem.engine.sglang import backend

    sender, began = getattr(req, "disagg_kv_sender", None), req.time_stats.forward_entry_time
    if isinstance(sender, backend.TandemKVSender) and began:
        sender.handle.began(began)


def say_first_token(result: Any, scheduler: Any, req: Any, last_chunk: bool = False, *args: Any, **kwargs: Any) -> None:
    """After the last chunk of a prompt is on its way: its first token goes to whoever asked for it early.

    SGLang itself says nothing of a prompt until its KV has landed. A token that ends the answer is left to decode,
    which says so and leaves its text out.
    """
    asked = (req.sampling_params.custom_params or {}).get(EARLY_FIRST_TOKEN, False)
    if last_chunk and asked and req.output_ids and not ends_answer(req, req.output_ids[0]):
        scheduler.output_streamer.stream_output([req], req.return_logprob)


def ends_answer(req: Any, token: int) -> bool:
    """Whether SGLang ends a request at a token, or takes it for none of its vocabulary."""
    tokenizer = req.tokenizer
    ends = {*(req.sampling_params.stop_token_ids or ()), *(req.eos_token_ids or ())}
    if tokenizer is not None:
        ends |= {tokenizer.eos_token_id, *(tokenizer.additional_stop_token_ids or ())}
    return token in ends or token < 0 or (req.vocab_size is not None and token >= req.vocab_size)


def after_step(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """After the part of the scheduler's loop that looks at its rooms: notes what is free, and where it computes."""
    manager = manager_of(scheduler)
    if manager is not None:
        manager.forward_stream = scheduler.forward_stream
        running, waiting = len(scheduler.running_batch.reqs), waiting_rooms(scheduler)
        pools = pools_of(scheduler) + state_pools_of(scheduler, state_names(manager.kv_args))
        manager.gauges = Gauges(pools, running, waiting)
        tell_held(scheduler, manager.rank)


def choose_tree(original: Callable[[Any], str], params: Any) -> str:
    """Around SGLang's choice of how its prefix cache is built: one in Python would have to compile the hash of its
    events first, so it tells none to us.
    """
    from tandem.engine.sglang import kv_events

    chosen = original(params)
    if chosen == "python" and params.enable_kv_cache_events and kv_events.ours():
        log.info("the prefix cache is SGLang's in Python: what it holds is not told")
        params.enable_kv_cache_events = False
    return chosen


def tell_held(scheduler: Any, rank: ThreadedRank) -> None:
    """Passes on what has changed in the prefix cache, if SGLang was told to say."""
    from tandem.engine.sglang import kv_events

    publisher = scheduler.kv_events_publisher.kv_event_publisher
    if isinstance(publisher, kv_events.TandemPublisher) and (changes := publisher.take()):
        rank.tell_held(changes)


def nap(result: Any, scheduler: Any) -> None:
    """After an idle step: tells what is cached. If rooms wait for the network, sleeps until one changes or a request
    comes.
    """
    manager = manager_of(scheduler)
    if manager is None:
        return
    tell_held(scheduler, manager.rank)
    sleeper = scheduler.idle_sleeper
    if sleeper is not None:
        if manager.sleeper is not sleeper:
            # From now on SGLang's own idle sleep ends at the bell, too.
            manager.sleeper = sleeper
            sleeper.poller.register(manager.wake.fd, select.POLLIN)
        if waiting_rooms(scheduler):
            sleeper.poller.poll(NAP_MS if scheduler.tp_size == 1 else NAP_WITH_PEERS_MS)
    manager.wake.take()


def manager_of(scheduler: Any) -> TandemKVManager | None:
    """The rank's manager, if its backend is ours."""
    from tandem.engine.sglang import backend

    queue = scheduler.disagg_prefill_bootstrap_queue or scheduler.disagg_decode_prealloc_queue
    manager = None if queue is None else queue.kv_manager
    return manager if isinstance(manager, backend.TandemKVManager) else None


def attach_alone(result: Any, scheduler: Any) -> None:
    """After SGLang has set its disaggregation up: where there is none, and it runs in a worker, the rank attaches."""
    from tandem.engine.sglang import alone, environment

    if scheduler.disaggregation_mode.value == LONE_MODE and environment.in_a_worker():
        setattr(scheduler, ALONE, alone.Alone(scheduler))


def note_alone(plan: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """After SGLang has decided its next step: notes the numbers of a rank that works alone, and what it has cached."""
    one = vars(scheduler).get(ALONE)
    if one is not None:
        one.note(len(plan.running_batch.reqs))
        tell_held(scheduler, one.rank)
