"""Blocks computed ahead by threads, and scales computed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from shardmerge.phase1_dump.quantization.derived import SCALES_KEPT, Scales
from shardmerge.phase1_dump.sources import ahead
from shardmerge.phase1_dump.sources.ahead import Block, computing_ahead


def block(number: int, seconds: float = 0.0, *, by_thread: bool = True) -> Block:
    """One byte that says its number, after a while."""

    def make() -> torch.Tensor:
        time.sleep(seconds)
        return torch.tensor([number], dtype=torch.uint8)

    return Block(make, 1, by_thread)


def test_blocks_come_in_their_order_however_long_each_takes() -> None:
    blocks = [(n, block(n, 0.02 * (n % 3 == 0), by_thread=n % 4 != 1)) for n in range(20)]
    with computing_ahead(max_bytes=6) as threads:
        found = [(key, int(made)) for key, made in threads.in_order(blocks)]
    assert found == [(n, n) for n in range(20)]


@pytest.mark.parametrize("max_bytes", [1, 3])
def test_no_more_is_computed_ahead_than_there_is_room_for(max_bytes: int) -> None:
    begun = 0

    def make() -> torch.Tensor:
        nonlocal begun
        begun += 1
        return torch.zeros(1)

    with computing_ahead(max_bytes) as threads:
        made = threads.in_order((n, Block(make, 1, ahead=True)) for n in range(50))
        for taken in range(1, 51):
            next(made)
            time.sleep(0.001)
            assert begun <= taken + max_bytes


def test_a_block_that_is_not_for_threads_is_made_when_its_turn_comes() -> None:
    makers = []

    def make() -> torch.Tensor:
        makers.append(threading.current_thread())
        return torch.zeros(1)

    with computing_ahead(10) as threads:
        list(threads.in_order([(0, Block(make, 1, ahead=False)), (1, Block(make, 1, ahead=True))]))
    assert [maker is threading.main_thread() for maker in sorted(makers, key=lambda one: one.name)] == [
        True,
        False,
    ]


def test_what_a_thread_raises_arrives_and_torch_has_its_threads_again() -> None:
    before = torch.get_num_threads()

    def fail() -> torch.Tensor:
        assert torch.get_num_threads() == 1
        raise ValueError("block 3")

    blocks = [(n, Block(fail, 1, ahead=True) if n == 3 else block(n)) for n in range(9)]
    with pytest.raises(ValueError, match="block 3"), computing_ahead(4) as threads:
        list(threads.in_order(blocks))
    assert torch.get_num_threads() == before


def test_there_are_as_many_threads_as_torch_may_use_up_to_a_bound() -> None:
    before = torch.get_num_threads()
    try:
        for allowed in (1, 3, 64):
            torch.set_num_threads(allowed)
            together = min(allowed, ahead.THREADS_AT_MOST)
            meeting = threading.Barrier(together, timeout=10)

            def meet(meeting: threading.Barrier = meeting) -> torch.Tensor:
                meeting.wait()  # passes only if so many are in it at once
                return torch.zeros(1)

            with computing_ahead(100) as threads:
                list(threads.in_order((n, Block(meet, 1, ahead=True)) for n in range(together)))
    finally:
        torch.set_num_threads(before)


def test_scales_are_computed_once_for_the_two_who_want_them() -> None:
    scales, weight, rows = Scales(), object(), slice(0, 4)
    first = scales.get(weight, rows, lambda: torch.ones(1))
    assert scales.get(weight, rows, _never) is first
    assert not scales.found


def test_scales_that_nobody_fetches_are_forgotten() -> None:
    scales = Scales()
    for row in range(3 * SCALES_KEPT):
        scales.get(scales, slice(row, row + 1), lambda: torch.ones(1))
    assert len(scales.found) == SCALES_KEPT


def test_whoever_waits_for_scales_hears_of_the_failure() -> None:
    scales, rows = Scales(), slice(0, 4)
    failing: Callable[[], torch.Tensor] = lambda: torch.ones(2).reshape(3)  # noqa: E731
    for _ in range(2):
        with pytest.raises(RuntimeError, match="invalid for input of size 2"):
            scales.get(scales, rows, failing)


def _never() -> torch.Tensor:
    raise AssertionError("computed twice")
