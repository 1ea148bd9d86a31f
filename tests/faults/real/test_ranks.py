"""Ranks that are missing, or do not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import DuplicateRankError, MissingRankError, MixedGenerationsError
from shardmerge.phase2_merge import check
from tests.dumps.refusals import edit
from tests.faults.real.conftest import Victim

Make = Callable[[str], Victim]


def test_missing_rank_is_named_with_its_coordinates_and_its_debt(victim: Make) -> None:
    one = victim("experts")
    shutil.rmtree(one.rank(5))
    error = one.refused(MissingRankError, 3)
    assert error.rank == 5
    assert error.coordinates == {"pp": 1, "tp": 1, "dp": 0}  # ep repeats tp, edp repeats dp: not told twice
    assert "experts 4-7 of layers 2-3" in error.debt
    assert "Dump this run again" in error.message()


@pytest.mark.parametrize(
    ("field", "value", "other"),
    [("run_id", "run-2", "run-1"), ("step", 101, "100"), ("attempt", "1", "0")],
    ids=["a rank of another run", "another step under the same run id", "a rank of a restarted attempt"],
)
def test_rank_of_another_generation_names_field_and_ranks(
    victim: Make, field: str, value: Any, other: str
) -> None:
    one = victim("experts")
    edit(one.rank(6) / "manifest.json", **{field: value})
    error = one.refused(MixedGenerationsError, 4)
    assert error.field == field
    assert error.values == {other: (0, 1, 2, 3, 4, 5, 7), str(value): (6,)}


def test_two_topologies_mixed_name_the_axis_and_the_ranks(victim: Make, sound: Path) -> None:
    one = victim("experts")
    shutil.rmtree(one.rank(2))
    shutil.copytree(sound / "one_stage" / "dump" / "rank-00002", one.rank(2))
    error = one.refused(MixedGenerationsError, 4)
    assert error.field == "topology"
    assert list(error.values.values()) == [(0, 1, 3, 4, 5, 6, 7), (2,)]
    assert [json.loads(value)["pp"] for value in error.values] == [2, 1]


def test_another_world_size_names_the_ranks(victim: Make) -> None:
    one = victim("experts")
    edit(one.rank(7) / "manifest.json", world_size=16)
    found = one.refused(MixedGenerationsError, 4)
    assert (found.field, found.values) == ("world_size", {"8": (0, 1, 2, 3, 4, 5, 6), "16": (7,)})


def test_one_rank_found_twice_with_other_content_names_both_places(victim: Make, tmp_path: Path) -> None:
    one = victim("experts")
    shutil.copytree(one.rank(3), tmp_path / "more" / "rank-00003")
    edit(tmp_path / "more" / "rank-00003" / "manifest.json", attempt="1")
    with pytest.raises(DuplicateRankError) as error:
        check([one.dump, tmp_path / "more"], hf_reference=one.reference)
    assert (error.value.rank, error.value.exit_code) == (3, 4)
    assert error.value.paths == (str(one.rank(3)), str(tmp_path / "more" / "rank-00003"))
