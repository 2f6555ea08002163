"""What can be set up: how many workers of each role, their policy and their pages. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from tandem.cli.sim_serve.cluster import ClusterPlan
from tandem.cli.sim_serve.model_file import CostModel
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
from tandem.core.policies import PolicyName, policy_named

CACHE_SHARE: Final = 0.5
"""Of a worker's pages, for prompts that are over, where prompts share beginnings. A prefill worker needs the others for
prompts that wait to be moved, a unified one for answers."""


@dataclass(frozen=True, slots=True, order=True)
class Arrangement:
    """Workers: pairs of pools, unified ones, or both."""

    prefill: int = 0
    decode: int = 0
    unified: int = 0

    @property
    def workers(self) -> int:
        """All of them."""
        return self.prefill + self.decode + self.unified

    @property
    def kind(self) -> Kind:
        """What it is made of."""
        if not self.unified:
            return Kind.PAIRS
        return Kind.MIXED if self.decode else Kind.UNIFIED

    def __str__(self) -> str:
        pairs = f"{self.prefill}:{self.decode}" if self.decode else ""
        return " + ".join([pairs] * bool(pairs) + [f"{self.unified} unified"] * bool(self.unified))


class Kind(Enum):
    """Of what a cluster is."""

    PAIRS = "pairs"
    UNIFIED = "unified"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try."""

    arrangement: Arrangement
    policy: PolicyName
    """Of the workers that compute prompts; decode workers are chosen by the least load, or with them by cost."""
    page_tokens: int
    short_tokens: int = DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
    """Longest prompt that goes to unified workers first, where there are pairs as well."""

    @property
    def policies(self) -> Mapping[Role, PolicyName]:
        """Of each role."""
        by_cost = self.policy is PolicyName.LEAST_COST
        return {
            Role.PREFILL: self.policy,
            Role.DECODE: PolicyName.LEAST_COST if by_cost else PolicyName.LEAST_LOAD,
            Role.UNIFIED: PolicyName.LEAST_LOAD if by_cost else self.policy,
        }

    def plan(self, model: CostModel, *, shared: bool, seed: int) -> ClusterPlan:
        """For the simulator. shared: prompts have beginnings in common, so that workers keep them."""
        shape, counts = replace(model.shape, page_tokens=self.page_tokens), self.arrangement
        alone = shape
        if shared and not shape.cache_tokens:
            shape = replace(shape, cache_tokens=round(shape.kv_tokens * CACHE_SHARE))
            alone = replace(shape, kv_tokens=shape.kv_tokens - shape.cache_tokens)
        return ClusterPlan(
            prefill=counts.prefill,
            decode=counts.decode,
            unified=counts.unified,
            costs=model.engine,
            link=model.link,
            shape=shape,
            unified_shape=alone,
            unified_max_prompt_tokens=self.short_tokens,
            gateway=model.gateway,
            policies=self.policies,
            seed=seed,
        )


def arrangements(workers: Sequence[int]) -> Iterator[Arrangement]:
    """Every split of every number of workers, and as many unified ones."""
    for count in workers:
        yield from (Arrangement(prefill, count - prefill) for prefill in range(1, count))
        yield Arrangement(unified=count)


def usual_policies(*, shared: bool, sessions: bool) -> list[PolicyName]:
    """Those worth a try. shared: prompts have beginnings in common. sessions: they are turns of conversations."""
    names = [PolicyName.LEAST_LOAD, PolicyName.ROUND_ROBIN, PolicyName.LEAST_COST]
    names += [PolicyName.PREFIX_HASH, PolicyName.CACHE_AWARE] if shared else []
    return names + ([PolicyName.CONSISTENT_HASH] if shared and sessions else [])


def policy_for(name: str, *, shared: bool, sessions: bool) -> PolicyName:
    """Raises INVALID_ARGUMENT for what there is not, and for what this load gives nothing to go by."""
    policy = policy_named(name)
    lacks = ""
    if policy is PolicyName.CONSISTENT_HASH and not sessions:
        lacks = "no request of this load is of a session"
    elif policy is PolicyName.CACHE_AWARE and not shared:
        lacks = "its prompts share too little for a cache"
    if lacks:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"--policies {name}: {lacks}", field="policies")
    return policy
