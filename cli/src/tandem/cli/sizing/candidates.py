"""What can be set up: how many workers of each role, their policy and their pages. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tandem.cli.sim_serve.cluster import ClusterPlan
from tandem.cli.sim_serve.model_file import CostModel
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.core.policies import BY_HELD_PAGES, PolicyName, policy_named

CACHE_SHARE: Final = 0.5
"""Of a worker's pages, for prompts that are over, where prompts share beginnings. A prefill worker needs the others for
prompts that wait to be moved, a unified one for answers."""


@dataclass(frozen=True, slots=True, order=True)
class Arrangement:
    """Workers: pairs of pools, or unified ones."""

    prefill: int = 0
    decode: int = 0
    unified: int = 0

    @property
    def workers(self) -> int:
        """All of them."""
        return self.prefill + self.decode + self.unified

    def __str__(self) -> str:
        return f"{self.unified} unified" if self.unified else f"{self.prefill}:{self.decode}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try."""

    arrangement: Arrangement
    policy: PolicyName
    """Of the workers that compute prompts; decode workers are chosen by the least load."""
    page_tokens: int

    def plan(self, model: CostModel, *, shared: bool, seed: int) -> ClusterPlan:
        """For the simulator. shared: prompts have beginnings in common, so that workers keep them."""
        shape, counts = replace(model.shape, page_tokens=self.page_tokens), self.arrangement
        if shared and not shape.cache_tokens:
            kept = round(shape.kv_tokens * CACHE_SHARE)
            room = shape.kv_tokens - kept if counts.unified else shape.kv_tokens
            shape = replace(shape, cache_tokens=kept, kv_tokens=room)
        policies = {Role.PREFILL: self.policy, Role.DECODE: PolicyName.LEAST_LOAD, Role.UNIFIED: self.policy}
        return ClusterPlan(
            prefill=counts.prefill,
            decode=counts.decode,
            unified=counts.unified,
            costs=model.engine,
            link=model.link,
            shape=shape,
            gateway=model.gateway,
            policies=policies,
            seed=seed,
        )


def arrangements(workers: Sequence[int]) -> Iterator[Arrangement]:
    """Every split of every number of workers, and as many unified ones."""
    for count in workers:
        yield from (Arrangement(prefill, count - prefill) for prefill in range(1, count))
        yield Arrangement(unified=count)


def simulated_policy(name: str) -> PolicyName:
    """Raises INVALID_ARGUMENT for what there is not, and for what the simulator can't tell from another."""
    policy = policy_named(name)
    if policy in BY_HELD_PAGES or policy is PolicyName.CONSISTENT_HASH:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"--policies {name}: it goes by what caches hold, or by sessions, which the simulator does not tell it",
            field="policies",
        )
    return policy
