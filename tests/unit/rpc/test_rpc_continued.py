"""Where a packed list is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.rpc.continued import cut, varint_bytes
from tandem.v1 import session_pb2


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([1 << bits for bits in range(32)]), max_size=50))
def test_sizes_are_those_of_protobuf(values: list[int]) -> None:
    for given_values in (values, [max(value - 1, 0) for value in values]):
        packed = session_pb2.Submit(input_ids=given_values).ByteSize()
        inner = int(varint_bytes(np.array(given_values, np.uint32)).sum())
        assert packed == (0 if not given_values else inner + 2 + (inner > 127))


@given(st.lists(st.integers(1, 10), max_size=60), st.integers(-5, 40), st.integers(10, 40))
def test_each_part_holds_as_much_as_fits(sizes: list[int], first: int, rest: int) -> None:
    ends = cut(np.array(sizes, np.int64), first, rest)
    assert ends[-1] == len(sizes)
    begin = 0
    for number, end in enumerate(ends):
        room = first if number == 0 else rest
        assert begin <= end
        assert number == 0 or begin < end, "only the first part may be empty"
        assert begin == end or sum(sizes[begin:end]) <= room
        assert end == len(sizes) or sum(sizes[begin : end + 1]) > room, "one more would have fit"
        begin = end


def test_parts_that_hold_no_item_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="hold no item"):
        cut(np.array([3, 5], np.int64), 10, 4)
