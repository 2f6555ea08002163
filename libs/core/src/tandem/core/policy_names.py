"""The names of the routing policies, by themselves: the command line completes them, and has no time for numpy."""

from __future__ import annotations

from enum import Enum


class PolicyName(Enum):
    """Policies that exist."""

    __hash__ = object.__hash__
    """Members are single objects; Enum's own hashes their names, in Python."""

    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    LEAST_LOAD = "least_load"
    POWER_OF_TWO = "power_of_two"
    CONSISTENT_HASH = "consistent_hash"
    PREFIX_HASH = "prefix_hash"
    CACHE_AWARE = "cache_aware"
    LEAST_COST = "least_cost"
