"""kill -9, a full disk and a broken one, at every call of a dump: a rank is complete or not there, and may be rerun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import pieces_of, shapes_of, tiling_faults
from tests.phase1_dump.faulting import FAMILY, MODES

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RANK, FAILED = "rank-00000", "rank-00000.failed.json"


@dataclass(frozen=True)
class Swept:
    """What came of all points.

    `tree` is what an undisturbed dump holds, and `points` what each fault left and what the next attempt made of it.
    """

    folder: Path
    tree: dict[str, str]
    points: list[dict[str, Any]]

    def offending(self, is_as_it_should_be: Callable[[dict[str, Any]], bool], *modes: str) -> list[Any]:
        """Points of these modes of which it is not true."""
        chosen = [point for point in self.points if point["mode"] in modes]
        assert chosen
        return [point for point in chosen if not is_as_it_should_be(point)]

    def is_complete(self, left: dict[str, str]) -> bool:
        """Whether a rank stands there with everything that belongs to it, and nothing else."""
        rank = {name: held for name, held in left.items() if name.split("/")[0] == RANK}
        return rank == self.tree


@pytest.fixture(scope="module")
def swept(references: References, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("faults")
    command = [
        *(sys.executable, "-W", "ignore", "-m", "tests.phase1_dump.faulting"),
        *(str(folder), str(references.config(FAMILY))),
    ]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    undisturbed, *points = map(json.loads, found.stdout.splitlines())
    return Swept(folder, undisturbed["tree"], points)


def test_a_killed_process_leaves_a_complete_rank_or_none(swept: Swept) -> None:
    assert swept.offending(lambda point: point["first"]["signal"] == signal.SIGKILL, "kill", "half") == []
    assert (
        swept.offending(lambda point: RANK not in point["left"] or swept.is_complete(point["left"]), *MODES)
        == []
    )
    calls = {(point["call"], RANK in point["left"]) for point in swept.points if point["mode"] == "kill"}
    assert {
        ("write", False),
        ("fsync", False),
        ("fsync", True),
        ("os.rename", False),
        ("os.rmdir", True),
    } < calls


def test_the_next_attempt_ends_with_the_same_bytes_and_nothing_beside_them(swept: Swept) -> None:
    """It dumps the rank, or refuses because it is complete; either way nothing is left of the attempt before it."""

    def is_whole(point: dict[str, Any]) -> bool:
        error = point["second"]["error"]
        refused = error is not None and error["class"] == "OutputExistsError"
        return point["tree"] == swept.tree and refused is (RANK in point["left"])

    assert swept.offending(is_whole, *MODES) == []


def test_a_failing_call_names_a_path_and_is_recorded(swept: Swept) -> None:
    """The rank fails and is not there; or it is complete, and only what is left over could not be removed."""

    def is_told(point: dict[str, Any]) -> bool:
        error, left = point["first"]["error"], point["left"]
        if error is None:
            return swept.is_complete(left)
        named = f"{point['mode']}-{point['number']:03d}" in error["text"]
        recorded = FAILED in left or any(f"{FAILED} could not be written" in note for note in error["notes"])
        return named and recorded and RANK not in left

    assert swept.offending(is_told, "EIO", "ENOSPC") == []


def test_what_cannot_be_removed_after_the_rank_is_complete_is_said(swept: Swept) -> None:
    late = [
        point
        for point in swept.points
        if point["mode"] == "EIO" and RANK in point["left"] and len(point["left"]) > len(swept.tree)
    ]
    assert late
    assert [point for point in late if "could not be removed" not in point["first"]["said"]] == []


def test_the_undisturbed_dump_holds_every_tensor_once(swept: Swept, references: References) -> None:
    dump = swept.folder / "undisturbed" / "dump"
    assert [path.name for path in dump.iterdir()] == [RANK]
    assert tiling_faults(pieces_of(dump), shapes_of(references.weights(FAMILY))) == []
