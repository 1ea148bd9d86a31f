"""What the child reads of shared memory that is smaller than the rank: no byte is freed before it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.background.arriving import AbandonedError, Arrived, Arriving
from shardmerge.phase1_dump.background.messages import Job, Spot
from shardmerge.phase1_dump.fragments.write_rank import RankPlan
from shardmerge.phase1_dump.generation import Generation
from shardmerge.phase1_dump.source import Holding, ManifestFacts, Seen
from shardmerge.phase1_dump.world import World

SIZES, MEMORY = (12, 3, 0, 20), 16


def holdings() -> list[Holding]:
    found, begin = [], 0
    for number, size in enumerate(SIZES):
        rectangle = Rectangle(f"t{number}", "U8", (size,), (0,), (size,))
        found.append(Holding(rectangle, (0,), Spot(number, begin)))
        begin += size
    return found


def arriving(arrived: Arrived, freed: list[int] | None) -> Arriving:
    facts = ManifestFacts("LlamaForCausalLM", {}, "BF16")
    job = Job(
        World(0, 1, {}, {}), Generation("run", 1, "0"), facts, RankPlan(()), Path(), 1, sum(SIZES), MEMORY
    )
    return Arriving(job, memoryview(bytearray(MEMORY)), arrived, None if freed is None else freed.append)


def test_a_block_is_not_freed_before_the_block_after_the_next_is_asked_for() -> None:
    """Blocks are a quarter of the memory: they begin at 0, 4, 8, 12, and so on. The first one begins at 0, too."""
    freed: list[int] = []
    stream = arriving(Arrived(end=sum(SIZES), seen=[Seen()] * 4), freed).read(holdings())
    begins, known = list[int](), []
    at = 0
    for block in stream:
        if isinstance(block, memoryview):
            begins.append(at)
            at += len(block)
            known.append(freed[-1])
    assert at == sum(SIZES)
    assert begins[:5] == [0, 4, 8, 12, 15]
    assert known == [0, *begins[:-1]]
    assert max(freed) == begins[-2]


def test_all_before_a_stream_is_free_when_it_begins() -> None:
    freed: list[int] = []
    stream = arriving(Arrived(end=sum(SIZES), seen=[Seen()] * 4), freed).read(holdings()[3:])
    next(stream)
    assert freed == [15]


def test_whoever_waits_is_told_that_nothing_will_come() -> None:
    arrived = Arrived(end=12, is_abandoned=True)
    with pytest.raises(AbandonedError):
        list(arriving(arrived, None).read(holdings()))
