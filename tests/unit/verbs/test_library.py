"""pyverbs' constants, which its releases keep in different places."""

from __future__ import annotations

import enum
from types import ModuleType

from tandem.rdma.verbs.library import constants_of


class ibv_wc_status(enum.IntEnum):  # noqa: N801 - pyverbs' own name
    """As Cython 3 makes it."""

    IBV_WC_SUCCESS = 0
    IBV_WC_RETRY_EXC_ERR = 12


class ibv_send_flags(enum.IntFlag):  # noqa: N801 - pyverbs' own name
    """As Cython 3 makes it, with two names of one value."""

    IBV_SEND_FENCE = 1
    IBV_SEND_SIGNALED = 2
    IBV_SEND_ALSO_SIGNALED = 2


def test_constants_are_found_at_the_top_and_inside_classes() -> None:
    module = ModuleType("enums")
    vars(module).update(ibv_wc_status=ibv_wc_status, ibv_send_flags=ibv_send_flags, IBV_QP_STATE=1, other=object)
    found = constants_of(module)
    assert found == {
        "IBV_WC_SUCCESS": 0,
        "IBV_WC_RETRY_EXC_ERR": 12,
        "IBV_SEND_FENCE": 1,
        "IBV_SEND_SIGNALED": 2,
        "IBV_SEND_ALSO_SIGNALED": 2,
        "IBV_QP_STATE": 1,
    }
    assert {type(value) for value in found.values()} == {int}
