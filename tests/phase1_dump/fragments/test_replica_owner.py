"""Who writes a rectangle that several ranks hold."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shardmerge.phase1_dump.fragments.replica_owner import Candidate, owners
from shardmerge.phase1_dump.world import replica_group


def test_the_largest_is_given_first_and_to_the_least_loaded() -> None:
    held = [
        Candidate("a", 1, (4, 7)),
        Candidate("b", 10, (4, 7)),
        Candidate("c", 6, (4, 7)),
        Candidate("d", 5, (4, 7)),
    ]
    assert owners(held) == {"b": 4, "c": 7, "d": 7, "a": 4}


def test_equals_are_ordered_by_key_and_the_lowest_rank_is_first() -> None:
    assert owners([Candidate("y", 1, (1, 2)), Candidate("x", 1, (1, 2))]) == {"x": 1, "y": 2}


def test_a_rank_alone_writes_what_it_holds() -> None:
    assert owners([Candidate("a", 5, (3,)), Candidate("b", 5, (3,))]) == {"a": 3, "b": 3}


def test_groups_do_not_weigh_on_each_other() -> None:
    assert owners([Candidate("a", 9, (0,)), Candidate("b", 1, (0, 1))]) == {"a": 0, "b": 0}


@given(
    st.dictionaries(st.text(max_size=4), st.integers(1, 100), min_size=1, max_size=30),
    st.permutations([0, 1, 2]),
)
def test_every_member_finds_the_same_and_loads_differ_by_one_tensor_at_most(
    sizes: dict[str, int], order: list[int]
) -> None:
    held = [Candidate(key, size, (0, 1, 2)) for key, size in sizes.items()]
    found = owners(held)
    assert owners(reversed(held)) == found
    load = Counter(dict.fromkeys(order, 0))
    for key, rank in found.items():
        load[rank] += sizes[key]
    assert max(load.values()) - min(load.values()) <= max(sizes.values())


def test_steps_along_two_axes_add_up() -> None:
    # tp 2 x cp 2 x dp 2, tp fastest: rank 5 is tp 1, cp 0, dp 1
    assert replica_group(5, [1, 5], [5, 7]) == (1, 3, 5, 7)


def test_no_axis_is_the_rank_alone() -> None:
    assert replica_group(3) == (3,)
    assert replica_group(3, [3], [3]) == (3,)
