"""A live source read by hand: blocks, then what was seen of them, holding by holding, through two buffers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from math import nan
from pathlib import Path

import torch

from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.quantization.derived import Derived
from shardmerge.phase1_dump.rectangles.parts import Part, Recipe, Scalar
from shardmerge.phase1_dump.source import Holding, Seen
from shardmerge.phase1_dump.sources.host_memory.host_buffers import HostBuffers
from shardmerge.phase1_dump.sources.host_memory.pinned import PinnedMemory
from tests.phase1_dump.hand_made import Copying, numbers, raw, source_of, whole


def events(holdings: list[Holding], buffers: HostBuffers, *, inspect: bool = True) -> list[bytes | Seen]:
    stream = source_of(holdings, buffers).read(holdings, inspect=inspect)
    return [one if isinstance(one, Seen) else bytes(one) for one in stream]


def test_each_holding_is_its_blocks_and_then_what_was_seen() -> None:
    first, second = numbers(4, 8), torch.zeros(3, 8, dtype=torch.bfloat16)
    found = events([whole("a", first), whole("b", second)], HostBuffers(64))  # blocks of two rows
    assert found == [
        *(raw(first[:2]), raw(first[2:]), Seen()),
        *(raw(second[:2]), raw(second[2:]), Seen(all_zero=True)),
    ]


def test_numbers_are_not_inspected_unless_somebody_asks() -> None:
    exact = torch.tensor([[nan, 1 + 2**-15], [0.0, 1.0]])
    assert events([whole("a", exact)], HostBuffers(1 << 20))[-1] == Seen(nonfinite=(1, 0), narrowed=1)
    assert events([whole("a", exact)], HostBuffers(1 << 20), inspect=False)[-1] == Seen()


def test_a_number_known_beforehand_is_four_bytes() -> None:
    part = Part(Scalar(0.25), (), (), ())
    holding = Holding(Rectangle("s", "F32", (), (), ()), (0,), Recipe((part,), is_scale=True))
    source = source_of([holding], HostBuffers(1 << 20))
    source.settle()
    assert events([holding], HostBuffers(1 << 20)) == [raw(torch.tensor(0.25)), Seen()]


def test_a_block_stays_until_the_block_after_the_next_is_asked_for() -> None:
    rows = numbers(6, 8)
    holdings = [whole("a", rows)]
    stream = source_of(holdings, Copying(32)).read(holdings)  # a row in each of two buffers
    views = [next(stream), next(stream)]
    assert [bytes(view) for view in views if isinstance(view, memoryview)] == [raw(rows[:1]), raw(rows[1:2])]
    views.append(next(stream))
    assert isinstance(views[0], memoryview)
    assert bytes(views[0]) == raw(rows[2:3])


def test_a_row_larger_than_a_buffer_makes_that_buffer_larger() -> None:
    buffers, rows = Copying(32), numbers(3, 100)
    assert events([whole("a", rows)], buffers) == [*(raw(row) for row in rows), Seen()]
    (own,) = buffers.unused
    assert [buffer.num_bytes for buffer in own.buffers] == [200, 200]


def test_closing_a_stream_before_its_end_ends_its_threads() -> None:
    before, known = torch.get_num_threads(), threading.active_count()
    weight = numbers(8, 16)
    computed = Derived(
        (8, 16), (1, 1), 1, weight.dtype, weight.device, lambda r, c: weight[r, c], by_any_thread=True
    )
    holding = Holding(
        Rectangle("a", "BF16", (8, 16), (0, 0), (8, 16)),
        (0,),
        Recipe((Part(computed, (0, 0), (0, 0), (8, 16)),)),
    )
    stream = source_of([holding], HostBuffers(64)).read([holding])
    assert isinstance(next(stream), memoryview)
    assert threading.active_count() > known
    stream.close()
    assert (torch.get_num_threads(), threading.active_count()) == (before, known)


def test_memory_that_a_gpu_copies_to_is_of_huge_pages_and_of_this_process_alone() -> None:
    """As the kernel tells it: "hg" where huge pages are wanted, "dc" what a fork leaves out, "sh" what is shared."""
    memory = PinnedMemory.allocated(16 << 20)
    memory.tensor.fill_(7)
    address = memory.tensor.data_ptr()
    flags = next(flags for begin, end, flags in mappings() if begin <= address < end)
    assert {"hg", "dc"} <= flags
    assert not {"sh", "ms"} & flags
    memory.release()
    assert memory.num_bytes == 0


def mappings() -> Iterator[tuple[int, int, set[str]]]:
    """Yield begin, end and flags of everything that is mapped into this process."""
    begin = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first == "VmFlags:":
            yield begin, end, set(rest)
        elif not first.endswith(":"):
            begin, end = (int(at, 16) for at in first.split("-"))
