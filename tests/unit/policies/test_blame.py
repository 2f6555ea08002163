"""Whom a failure is laid to."""

from __future__ import annotations

import pytest

from tandem.core.blame import OF_ITSELF, blamed
from tandem.core.errors import ErrorReason
from tandem.core.ids import PAIR, Role


@pytest.mark.parametrize("reason", ErrorReason)
@pytest.mark.parametrize("failing", PAIR)
def test_a_leg_is_never_blamed_for_its_peer(reason, failing):
    peer = Role.DECODE if failing is Role.PREFILL else Role.PREFILL
    told = {blamed(failing, reason, by_peer=False), blamed(peer, reason, by_peer=True)}
    assert told == ({failing} if reason in OF_ITSELF else {None})


def test_what_a_leg_cannot_know_is_not_of_itself():
    between = {ErrorReason.LINK_LOST, ErrorReason.PEER_LOST, ErrorReason.TRANSFER_FAILED, ErrorReason.CHECKSUM_MISMATCH}
    assert not between & OF_ITSELF
