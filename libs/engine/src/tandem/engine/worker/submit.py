"""Reads Submit: its parts put together, every field checked, the field named where one is wrong."""

from __future__ import annotations

from collections.abc import Callable

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import MAX_ID, NONCE_BYTES, PAIR, Nonce, RankId, RequestId, Role, RoomId, WorkerLife
from tandem.engine.port import EngineFacts, Job, LogprobOptions, Sampling
from tandem.rpc import continued, convert
from tandem.v1 import session_pb2

MAX_TIMEOUT_MS = 86_400_000
MAX_TOP_LOGPROBS = 128
MAX_TRACESTATE = 512
MAX_LOGIT_BIAS = 1024


def _require(ok: bool, field: str, allowed: str) -> None:
    if not ok:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{field} must be {allowed}", field=field)


class SubmitCollector:
    """Puts the Submits of one Session together. Parts of one follow each other, so that it holds one at most."""

    def __init__(self, context_tokens: int, refuse: Callable[[RoomId, TandemError], None]) -> None:
        """context_tokens: longest prompt. refuse: gets a room whose Submit is given up."""
        self._context_tokens = context_tokens
        self._refuse = refuse
        self._whole: session_pb2.Submit | None = None
        """The unfinished one, as far as it is there; `part` is the last that came."""

    def add(self, part: session_pb2.Submit) -> session_pb2.Submit | None:
        """Takes a message; returns the Submit that it completes. What breaks the rules is refused."""
        whole = self._whole
        if part.part == 0:
            self._give_up(_violation("another Submit came between its parts"))
            whole = self._whole = part
        elif whole is None or whole.room != part.room:
            return None  # the rest of one that was given up
        elif part.part != whole.part + 1 or part.part >= continued.MAX_PARTS:
            self._give_up(_violation(f"part {part.part} came after {whole.part}, of {continued.MAX_PARTS} at most"))
            return None
        else:
            whole.input_ids.extend(part.input_ids)
            whole.part = part.part
        if not part.more:
            self._whole = None
            return whole
        if (found := len(whole.input_ids)) > self._context_tokens:
            text = f"{found} prompt tokens, and more to come; the context holds {self._context_tokens}"
            self._give_up(TandemError(ErrorReason.CONTEXT_TOO_LONG, text, field="input_ids"))
        return None

    def cancel(self, room: RoomId, why: TandemError) -> None:
        """The room was cancelled: what is there of its Submit is of no use."""
        if self._whole is not None and self._whole.room == room:
            self._give_up(why)

    def _give_up(self, error: TandemError) -> None:
        if (whole := self._whole) is not None:
            self._whole = None
            self._refuse(RoomId(whole.room), error)


def _violation(message: str) -> TandemError:
    return TandemError(ErrorReason.PROTOCOL_VIOLATION, message)


def check(message: session_pb2.Submit, facts: EngineFacts, role: Role) -> None:
    """Raises TandemError: INVALID_ARGUMENT naming the field, UNKNOWN_MODEL, CONTEXT_TOO_LONG."""
    _require(1 <= message.room <= MAX_ID, "room", "1..2^63-1")
    _require(len(message.nonce) == NONCE_BYTES, "nonce", f"{NONCE_BYTES} bytes")
    _require(1 <= len(message.request_id) <= 128, "request_id", "1..128 characters")
    _require(1 <= message.timeout_ms <= MAX_TIMEOUT_MS, "timeout_ms", f"1..{MAX_TIMEOUT_MS}")
    if role in PAIR:
        _require(bool(message.peer.worker_id) and message.peer.incarnation > 0, "peer", "a worker and its incarnation")
    else:
        _require(not message.HasField("peer"), "peer", f"left out: a {role.value} worker has none")
    _require(len(message.tracestate) <= MAX_TRACESTATE, "tracestate", f"at most {MAX_TRACESTATE} characters")
    _require(len(message.input_ids) > 0, "input_ids", "one token or more")
    _require(message.logprobs.top <= MAX_TOP_LOGPROBS, "logprobs.top", f"0..{MAX_TOP_LOGPROBS}")
    if message.model != facts.model:
        raise TandemError(
            ErrorReason.UNKNOWN_MODEL, f"model is {message.model!r}; this worker serves {facts.model!r}", field="model"
        )
    sampling = message.sampling
    _require(sampling.max_new_tokens >= 1, "sampling.max_new_tokens", "1 or more")
    _require(len(sampling.logit_bias) <= MAX_LOGIT_BIAS, "sampling.logit_bias", f"{MAX_LOGIT_BIAS} entries at most")
    total = len(message.input_ids) + sampling.max_new_tokens
    if total > facts.context_tokens:
        raise TandemError(
            ErrorReason.CONTEXT_TOO_LONG,
            f"{len(message.input_ids)} prompt tokens and {sampling.max_new_tokens} new ones make {total}; "
            f"the context holds {facts.context_tokens}",
            field="input_ids",
        )


def job_of(
    message: session_pb2.Submit,
    now: float,
    *,
    dp_rank: int,
    peer_dp_rank: int,
    peer_addresses: dict[RankId, str],
    traceparent: str,
) -> Job:
    """The job of a checked Submit. now: monotonic seconds. traceparent: of the leg, which the Submit's is above."""
    return Job(
        request_id=RequestId(message.request_id),
        room=RoomId(message.room),
        nonce=Nonce(message.nonce),
        peer=peer_of(message),
        peer_addresses=peer_addresses,
        deadline=now + message.timeout_ms / 1000,
        input_ids=list(message.input_ids),
        sampling=_sampling(message.sampling),
        logprobs=_logprobs(message.logprobs) if message.HasField("logprobs") else None,
        dp_rank=dp_rank,
        peer_dp_rank=peer_dp_rank,
        traceparent=traceparent,
        early_first_token=message.early_first_token,
    )


def peer_of(message: session_pb2.Submit) -> WorkerLife:
    """The worker of the other leg; of an empty name if there is none."""
    return convert.life_from_proto(message.peer)


def _logprobs(message: session_pb2.LogprobOptions) -> LogprobOptions:
    return LogprobOptions(top=message.top, prompt=message.prompt, prompt_start=message.prompt_start)


def _sampling(message: session_pb2.Sampling) -> Sampling:
    return Sampling(
        max_new_tokens=message.max_new_tokens,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        min_p=message.min_p if message.HasField("min_p") else None,
        frequency_penalty=message.frequency_penalty if message.HasField("frequency_penalty") else None,
        presence_penalty=message.presence_penalty if message.HasField("presence_penalty") else None,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        seed=message.seed if message.HasField("seed") else None,
        min_new_tokens=message.min_new_tokens,
        json_schema=message.json_schema,
        regex=message.regex,
        ebnf=message.ebnf,
        skip_special_tokens=message.skip_special_tokens,
        logit_bias=tuple(message.logit_bias.items()),
        structural_tag=message.structural_tag,
        reasoning_first=message.reasoning_first,
    )
