"""The policies once more, as plainly as they can be written: every worker is looked at for every choice."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log

from tandem.core.affinity import AffinityKey, worker_hash
from tandem.core.policies import Candidate, PolicyName, Turn

_64 = 2**64 - 1


def plain_choice(policy: PolicyName, candidates: Sequence[Candidate], turn: Turn) -> Candidate:
    """What tandem.core.policies.choose says. candidates: in order of life, at least one."""
    match policy:
        case PolicyName.RANDOM:
            return candidates[turn.bits % len(candidates)]
        case PolicyName.ROUND_ROBIN:
            return candidates[turn.count % len(candidates)]
        case PolicyName.LEAST_LOAD | PolicyName.LEAST_COST:
            return _least(candidates, turn)
        case PolicyName.POWER_OF_TWO:
            return _of_two(candidates, turn)
        case PolicyName.CONSISTENT_HASH:
            return _home(candidates, turn.session, turn)
        case PolicyName.PREFIX_HASH:
            return _home(candidates, turn.prefix, turn)
        case PolicyName.CACHE_AWARE:
            return _holder(candidates, turn)


def _least(candidates: Sequence[Candidate], turn: Turn) -> Candidate:
    least = min(one.load for one in candidates)
    equals = [one for one in candidates if one.load == least]
    return equals[turn.count % len(equals)]


def _of_two(candidates: Sequence[Candidate], turn: Turn) -> Candidate:
    rest, first = divmod(turn.bits, len(candidates))
    other = (first + 1 + rest % max(1, len(candidates) - 1)) % len(candidates)
    return min(candidates[first], candidates[other], key=lambda one: one.load)


def _home(candidates: Sequence[Candidate], key: AffinityKey, turn: Turn) -> Candidate:
    if not key:
        return _of_two(candidates, turn)
    return max(_below(candidates, turn.load_cap), key=lambda one: _rank(key, one))


def _holder(candidates: Sequence[Candidate], turn: Turn) -> Candidate:
    below = _below(candidates, turn.load_cap)
    most = max(turn.held.pages_of(one.life) for one in below)
    if most:
        return _least([one for one in below if turn.held.pages_of(one.life) == most], turn)
    return _home(candidates, turn.prefix, turn) if turn.prefix else _of_two(below, turn)


def _below(candidates: Sequence[Candidate], cap: float) -> list[Candidate]:
    rooms, places = 1 + sum(one.in_flight for one in candidates), sum(one.max_running for one in candidates)
    return [one for one in candidates if one.in_flight < ceil(cap * rooms * one.max_running / places)]


def _rank(key: AffinityKey, candidate: Candidate) -> float:
    drawn = worker_hash(candidate.life.worker_id) ^ int.from_bytes(key[:8], "big")
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        drawn = (drawn ^ drawn >> shift) * factor & _64
    drawn = (drawn ^ drawn >> 31) >> 12
    return candidate.max_running / -log((drawn + 0.5) / 2**52)
