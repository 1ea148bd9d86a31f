"""Which file a rectangle goes to, by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from shardmerge.phase1_dump.fragments.plan import PlannedFragment, plan_fragments
from shardmerge.phase1_dump.fragments.replicas import owned
from shardmerge.phase1_dump.source import Holding
from tests.phase1_dump.hand_made import box_of, whole


def of_bytes(name: str, size: int) -> Holding:
    return whole(name, torch.zeros(size // 2, dtype=torch.bfloat16))


def half(name: str, size: int) -> Holding:
    return box_of(name, torch.zeros(size // 2), (slice(0, size // 2),), (size // 2,), (size,))


def contents(fragments: tuple[PlannedFragment, ...]) -> dict[str, list[str]]:
    return {one.name: [entry.name for entry in one.header.entries] for one in fragments}


def test_a_file_ends_before_it_grows_too_large() -> None:
    holdings = [of_bytes(name, size) for name, size in (("a", 40), ("b", 40), ("c", 40), ("d", 80), ("e", 2))]

    assert contents(plan_fragments(holdings, 82)) == {
        "whole-00001.safetensors": ["a", "b"],
        "whole-00002.safetensors": ["c"],
        "whole-00003.safetensors": ["d", "e"],
    }


def test_a_tensor_larger_than_a_file_has_one_to_itself() -> None:
    holdings = [of_bytes("a", 2), of_bytes("b", 1000), of_bytes("c", 2)]

    assert contents(plan_fragments(holdings, 10)) == {
        "whole-00001.safetensors": ["a"],
        "whole-00002.safetensors": ["b"],
        "whole-00003.safetensors": ["c"],
    }


def test_parts_and_entire_tensors_never_share_a_file() -> None:
    holdings = [half("a", 40), of_bytes("b", 40), half("c", 40)]

    assert contents(plan_fragments(holdings, 1000)) == {
        "whole-00001.safetensors": ["b"],
        "split-00001.safetensors": ["a@20", "c@20"],
    }


def test_tensors_stay_aligned_because_the_least_aligned_come_last() -> None:
    holdings = [
        of_bytes(name, size) for name, size in (("odd", 6), ("page", 8192), ("four", 12), ("sixteen", 48))
    ]

    (fragment,) = plan_fragments(holdings, 10_000)

    assert [(entry.name, entry.begin) for entry in fragment.header.entries] == [
        ("page", 0),
        ("sixteen", 8192),
        ("four", 8240),
        ("odd", 8252),
    ]
    assert fragment.header.data_offset % 4096 == 0


def test_nothing_held_is_no_file() -> None:
    assert plan_fragments([], 1000) == ()


def test_each_of_three_replicas_writes_its_third() -> None:
    """Largest first, each to the least loaded: a to 2, b to 5, c to 9, then d (30 bytes) to the lightest, 9."""
    sizes = {"a": 100, "b": 90, "c": 60, "d": 30, "e": 2}
    holdings = [replace(of_bytes(name, size), replicas=(2, 5, 9)) for name, size in sizes.items()]

    names = {rank: [one.rectangle.name for one in owned(holdings, rank)] for rank in (2, 5, 9)}

    assert names == {2: ["a"], 5: ["b", "e"], 9: ["c", "d"]}
