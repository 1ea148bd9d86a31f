"""The tree of errors: codes, messages with facts, and what several become."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from shardmerge.common import errors as tree
from shardmerge.common.errors import ProblemsFoundError, ShardmergeError, raise_problems
from shardmerge.common.errors.several import fair_shares
from shardmerge.common.errors.wording import counted, first_ranks, of_ranks
from tests.documents.errors_page import leaves, sample

LEAVES = [kind for kind in leaves() if kind is not ProblemsFoundError]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_tells_its_facts_survives_a_process_and_is_json(kind: type[ShardmergeError]) -> None:
    error = sample(kind)
    assert str(error) == error.message()
    assert error.message().strip(".")
    assert "None" not in error.message()
    facts = json.loads(json.dumps(error.facts()))
    assert facts["error"] == kind.__name__
    assert {field.name for field in dataclasses.fields(kind)} <= set(facts)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.facts()) == (kind, error.facts())


@pytest.mark.parametrize(
    ("branch", "code"),
    [
        (tree.UsageError, 2), (tree.IncompleteError, 3), (tree.ConflictError, 4), (tree.UnsupportedError, 5),
        (tree.OutputError, 6),
    ],
)  # fmt: skip
def test_a_branch_has_one_exit_code(branch: type[ShardmergeError], code: int) -> None:
    assert {leaf.exit_code for leaf in leaves(branch)} == {code}


def test_many_problems_of_one_kind_are_a_count_with_examples_that_hide_no_other_kind() -> None:
    missing = [tree.MissingTensorError(f"t{i}", (1,), "x") for i in range(3000)]
    overlaps = [tree.OverlapError(f"w{i}", (0, 1), "here") for i in range(2)]
    rank = tree.MissingRankError(37, {"pp": 2}, "1,344 tensors")
    with pytest.raises(ProblemsFoundError) as error:
        raise_problems([*missing[:7], overlaps[0], rank, *missing[7:], overlaps[1]])
    assert error.value.exit_code == 4
    assert [line[:30] for line in error.value.message().splitlines()] == [
        "3,003 problems found:",
        "2 x overlap:",
        "  w0 is covered twice: here, b",
        "  w1 is covered twice: here, b",
        "3,000 x missing tensor:",
        *(f"  t{i} [1] is in no manifest, bu" for i in range(7)),
        "  ... and 2,993 more",
        "1 x missing rank:",
        "  rank 37 (pp 2) has no manife",
        "(--report FILE holds all)",
    ]


def test_a_report_holds_every_problem_in_the_order_found_and_counts_by_class() -> None:
    missing = [tree.MissingTensorError(f"t{i}", (1,), "x") for i in range(11)]
    facts = ProblemsFoundError((*missing, tree.OverlapError("w", (0, 1), "here"))).facts()
    assert facts["counts"] == {"OverlapError": 1, "MissingTensorError": 11}
    assert [problem["tensor"] for problem in facts["problems"]] == [*(f"t{i}" for i in range(11)), "w"]


def test_few_problems_are_all_shown_and_no_report_is_spoken_of() -> None:
    found = ProblemsFoundError(
        (
            tree.MissingTensorError("a", (1,), "x"),
            tree.UnsupportedParameterError("p", "no", 3),
            tree.MissingTensorError("b", (1,), "x"),
        )
    )
    told = "is in no manifest, but x requires it. "
    told += (
        "If training never held it, --graft takes it from the reference; or use one that does not list it."
    )
    assert found.message() == (
        "3 problems found:\n1 x unsupported parameter:\n  p on rank 3: no. Nothing was written.\n"
        f"2 x missing tensor:\n  a [1] {told}\n  b [1] {told}"
    )


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ([3000], [10]),
        ([3000, 1, 2], [7, 1, 2]),
        ([5, 5, 5], [4, 3, 3]),
        ([1] * 12, [1] * 10 + [0, 0]),
        ([], []),
    ],
)
def test_examples_are_shared_among_kinds(counts: list[int], shares: list[int]) -> None:
    assert fair_shares(counts, 10) == shares


def test_one_problem_is_raised_as_itself_and_none_not_at_all() -> None:
    raise_problems([])
    with pytest.raises(tree.OverlapError):
        raise_problems([tree.OverlapError("w", (0, 1), "here")])


def test_one_of_a_thing_is_not_several_and_no_rank_is_not_named() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert [of_ranks(ranks) for ranks in ((), (3,), (0, 1))] == ["", " (rank 3)", " (ranks 0, 1)"]
    assert "Rank 0 has 1 parameter of LoRA" in tree.AdapterError(("a",), 0).message()


def test_many_ranks_are_counted() -> None:
    assert first_ranks((0, 1, 2), 2) == "0, 1 and 1 more"
    assert first_ranks((5,)) == "5"
