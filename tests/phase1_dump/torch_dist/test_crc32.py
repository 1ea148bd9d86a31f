"""Checksums of runs, in any order, are those that zlib computes of the whole."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from shardmerge.phase1_dump.torch_dist.crc32 import Runs, combined


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_two_runs_are_the_whole(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(data=st.data())
def test_runs_in_any_order_with_gaps_and_overlaps(data: st.DataObject) -> None:
    whole = data.draw(st.binary(min_size=1, max_size=500))
    ends = st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))
    runs = Runs()
    for one, other in data.draw(st.lists(ends, max_size=12)):
        begin, end = sorted((one, other))
        runs.add(begin, memoryview(whole)[begin:end])
    for begin, end in list(runs.gaps(len(whole))):
        runs.add(begin, memoryview(whole)[begin:end])

    assert list(runs.gaps(len(whole))) == []
    assert runs.total() == zlib.crc32(whole)
