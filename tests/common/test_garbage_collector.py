"""The garbage collector rests, and runs again afterwards if it ran before."""

from __future__ import annotations

import gc

import pytest

from shardmerge.common.processes import garbage_collector as collector


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_off_inside_and_as_before_afterwards(before: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with collector.paused():
            assert not gc.isenabled()
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()
