"""How a sender chooses a provider: a pure function of both sides' abilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import ProviderOffer


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider, and why."""

    offer: ProviderOffer
    reason: str


def choose(
    ours: Sequence[str], offers: Sequence[ProviderOffer], host_identity: str, no_verbs: str = "verbs is not there"
) -> Choice:
    """The first of our providers that the receiver offers and that fits both sides.

    ours: the sender's providers, best first. host_identity: the sender's. no_verbs: why the sender can't use verbs,
    '' if it can.
    Raises TandemError(NOT_SUPPORTED) naming both sides' providers if none fits.
    """
    offered = {offer.name: offer for offer in offers}
    passed: list[str] = []
    for name in ours:
        offer = offered.get(name)
        obstacle = no_verbs if name == "verbs" and no_verbs else _obstacle(name, offer, host_identity)
        if offer is not None and not obstacle:
            return Choice(offer, "; ".join([*passed, f"{name}: {_why(name)}"]))
        passed.append(f"not {name}: {obstacle}")
    raise TandemError(
        ErrorReason.NOT_SUPPORTED,
        f"no provider fits: the sender has [{', '.join(ours)}], the receiver offers [{', '.join(offered)}]"
        + "".join(f"; {reason}" for reason in passed),
    )


def _obstacle(name: str, offer: ProviderOffer | None, host_identity: str) -> str:
    if offer is None:
        return "the receiver does not offer it"
    if name == "cma" and (not host_identity or offer.host_identity != host_identity):
        return "the two processes do not share host, namespaces and user"
    return ""


def _why(name: str) -> str:
    return {
        "cma": "both processes share host, namespaces and user",
        "tcp": "works anywhere",
        "verbs": "both have a device",
    }.get(name, "asked for")
