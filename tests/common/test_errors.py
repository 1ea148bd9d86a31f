"""The tree of errors: codes, messages with facts, and what several become."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from shardmerge.common import errors as tree
from shardmerge.common.errors import ShardmergeError, first_ranks
from shardmerge.common.problems import ProblemsFoundError, raise_problems

SAMPLES: dict[str, Any] = {
    "int": 3, "str": "some text", "str | None": "a reason", "tuple[int, ...]": (1, 2), "tuple[str, ...]": ("a", "b"),
    "dict[str, int]": {"pp": 2}, "dict[str, tuple[int, ...]]": {"x": (0,), "y": (1,)}, "int | None": 4,
}  # fmt: skip


def leaves(kind: type[ShardmergeError]) -> list[type[ShardmergeError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return below or [kind]


LEAVES = [kind for kind in leaves(ShardmergeError) if kind is not ProblemsFoundError]


def sample(kind: type[ShardmergeError]) -> ShardmergeError:
    return kind(**{field.name: SAMPLES[str(field.type)] for field in dataclasses.fields(kind)})


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


def test_several_problems_show_ten_and_exit_with_the_highest_code() -> None:
    missing = [tree.MissingTensorError(f"t{i}", (1,), "x") for i in range(11)]
    with pytest.raises(ProblemsFoundError) as error:
        raise_problems([*missing, tree.OverlapError("w", (0, 1), "here")])
    assert error.value.exit_code == 4
    assert error.value.message().startswith("12 problems found:\n  t0 [1] is in no manifest")
    assert error.value.message().endswith("... and 2 more (--report FILE holds all)")
    assert len(error.value.facts()["problems"]) == 12


def test_one_problem_is_raised_as_itself_and_none_not_at_all() -> None:
    raise_problems([])
    with pytest.raises(tree.OverlapError):
        raise_problems([tree.OverlapError("w", (0, 1), "here")])


def test_many_ranks_are_counted() -> None:
    assert first_ranks((0, 1, 2), 2) == "0, 1 and 1 more"
    assert first_ranks((5,)) == "5"
