"""Routing policies: pure functions that choose a worker, found by name in one table.

The caller keeps one Turn count for prefill and one for decode, and asks once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tandem.core.affinity import NO_KEY, AffinityKey
from tandem.core.candidates import Candidate as Candidate
from tandem.core.candidates import Candidates
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.core.kv_index import NOTHING_HELD, KvMatch
from tandem.core.policy_names import PolicyName as PolicyName

DEFAULT_LOAD_CAP: Final = 1.5
DEFAULT_PREFIX_TOKENS: Final = 128


@dataclass(frozen=True, slots=True)
class Turn:
    """What a policy may use besides the candidates."""

    count: int
    """How many choices were made before, for this role."""
    bits: int
    """At least 32 random bits; 0 or more."""
    session: AffinityKey = NO_KEY
    """Of the session that the client named."""
    prefix: AffinityKey = NO_KEY
    """Of the beginning of the prompt."""
    load_cap: float = DEFAULT_LOAD_CAP
    """Where a key or what is held decides: the most that a worker may be loaded, as a multiple of the mean; at least 1.
    """
    held: KvMatch = NOTHING_HELD
    """Who holds how much of the prompt; only for policies of BY_HELD_PAGES."""


BY_HELD_PAGES: Final = frozenset({PolicyName.CACHE_AWARE, PolicyName.LEAST_COST})
"""Policies that look at what prefix caches hold."""

BY_PREFIX: Final = frozenset({PolicyName.PREFIX_HASH, PolicyName.CACHE_AWARE})
"""Policies that look at how the prompt begins."""

Policy = Callable[[Candidates, Turn], Candidate]


def _random(candidates: Candidates, turn: Turn) -> Candidate:
    return candidates[turn.bits % len(candidates)]


def _round_robin(candidates: Candidates, turn: Turn) -> Candidate:
    return candidates[turn.count % len(candidates)]


def _least_load(candidates: Candidates, turn: Turn) -> Candidate:
    """The least loaded; equals take turns, so that an idle cluster does not send everything to its first worker."""
    least = candidates.least_loaded()
    return candidates[int(least[turn.count % len(least)])]


def _power_of_two(candidates: Candidates, turn: Turn) -> Candidate:
    """The less loaded of two that are drawn: nearly as even as the least loaded, and one that has just come is not
    given everything until it is as full as the others, by every gateway at the same time."""
    rest, first = divmod(turn.bits, len(candidates))
    other = (first + 1 + rest % max(1, len(candidates) - 1)) % len(candidates)
    return candidates[other if candidates.loads[other] < candidates.loads[first] else first]


def _consistent_hash(candidates: Candidates, turn: Turn) -> Candidate:
    """The home of the session, whose next prompt goes on where the last one ended."""
    return _home(candidates, turn.session, turn)


def _prefix_hash(candidates: Candidates, turn: Turn) -> Candidate:
    """The home of how the prompt begins, so that prompts that begin alike find it computed."""
    return _home(candidates, turn.prefix, turn)


def _home(candidates: Candidates, key: AffinityKey, turn: Turn) -> Candidate:
    """The nearest to a key of those below the cap ("Consistent Hashing with Bounded Loads", with ranks for a ring).
    Without a key there is no home, and power_of_two spreads.

    There always is one: if each had its share of all rooms, the new one included, they would have more than there are.
    """
    if not key:
        return _power_of_two(candidates, turn)
    homes = candidates.homes
    drawn = homes.draw(key)
    home = homes.nearest(drawn)
    if not candidates.is_below(home, turn.load_cap):
        home = homes.nearest_of(drawn, candidates.below(turn.load_cap))
    return candidates[home]


def _cache_aware(candidates: Candidates, turn: Turn) -> Candidate:
    """The one that holds most of the prompt, of those below the cap; the less loaded of equals. A prompt that nobody
    there holds anything of goes to the home of how it begins, where those that come with it are sent, too."""
    for _, holders in candidates.holders(turn.held):
        below = candidates.below_of(holders, turn.load_cap)
        if below.size:
            least = candidates.least_loaded_of(below)
            return candidates[int(least[turn.count % len(least)])]
    if not turn.prefix:
        return _power_of_two(candidates.at(candidates.below(turn.load_cap)), turn)
    return _home(candidates, turn.prefix, turn)


POLICIES: Final[Mapping[PolicyName, Policy]] = MappingProxyType(
    {
        PolicyName.RANDOM: _random,
        PolicyName.ROUND_ROBIN: _round_robin,
        PolicyName.LEAST_LOAD: _least_load,
        PolicyName.POWER_OF_TWO: _power_of_two,
        PolicyName.CONSISTENT_HASH: _consistent_hash,
        PolicyName.PREFIX_HASH: _prefix_hash,
        PolicyName.CACHE_AWARE: _cache_aware,
        # Pairs are chosen by tandem.core.pair_cost; a worker that has no peer costs what is before it there.
        PolicyName.LEAST_COST: _least_load,
    }
)


def policy_named(name: str) -> PolicyName:
    """Raises INVALID_ARGUMENT, naming the policies that exist, for any other name."""
    try:
        return PolicyName(name)
    except ValueError:
        allowed = ", ".join(policy.value for policy in PolicyName)
        text = f"no policy is named {name!r}; there are {allowed}"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="policy") from None


def choose(policy: PolicyName, candidates: Iterable[Candidate], turn: Turn, role: Role) -> Candidate:
    """Chooses one of the candidates, whatever order they come in. Raises NO_WORKER if there are none."""
    ordered = candidates if isinstance(candidates, Candidates) else Candidates.of(candidates)
    if not ordered:
        raise TandemError(ErrorReason.NO_WORKER, f"no {role.value} worker can take the request now")
    return POLICIES[policy](ordered, turn)
