"""A fixed sample of `make torture`: every scene, every way in which a call goes wrong. The rest takes an hour."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.torture.results import Results, summary
from tests.torture.trial import HELD, UNREACHED, Result

ROOT = Path(__file__).parents[2]
POINTS, SEED = 250, 11
POWERED = ("merge-adopt-unsynced", "merge-mixed", "finalize")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)
pytestmark = needs_compiler


def torture(folder: Path, *words: object) -> Mapping[str, Result]:
    """The results of `python -m tests.torture`, run as a shell would."""
    results = folder / "results.jsonl"
    given = ("--jobs", 2, "--results", results, *words)
    command = [sys.executable, "-m", "tests.torture", *map(str, given)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert "Traceback" not in ended.stderr, ended.stderr
    return Results(results).all()


def findings(results: Mapping[str, Result]) -> dict[str, Result]:
    return {name: result for name, result in results.items() if result.kind not in (HELD, UNREACHED)}


def modes(result: Result) -> list[str]:
    """In which ways calls went wrong. Which call was the hundredth depends on threads, too."""
    return [call.split(" ")[0] for call in result.call.split(", ")]


def test_a_sample_of_all_points_holds(tmp_path: Path) -> None:
    """`make torture SAMPLE=250 SEED=11` repeats it."""
    results = torture(tmp_path, "--sample", POINTS, "--seed", SEED)
    assert findings(results) == {}, summary(results)
    assert sum(result.kind == HELD for result in results.values()) >= 0.9 * POINTS


@pytest.mark.reflink
def test_a_sample_of_losses_of_power_holds(tmp_path: Path) -> None:
    places = [f"{scene}@{disk}:" for scene in POWERED for disk in ("ext4", "xfs")]
    results = torture(tmp_path, "--only", *places, "--power", "ext4", "xfs", "--sample", 60, "--seed", SEED)
    assert findings(results) == {}, summary(results)
    assert sum(result.kind == HELD for result in results.values()) >= 50


def test_a_random_chain_holds_and_is_repeated_by_its_name(tmp_path: Path) -> None:
    """Its name is all that `make torture SECONDS=... SEED=...` prints of what it finds."""
    names = [f"random-{SEED}-2:{number}:chain" for number in (1, 2, 3)]
    struck = []
    for folder in (tmp_path / "once", tmp_path / "again"):
        folder.mkdir()
        results = torture(folder, "--only", *names)
        assert findings(results) == {}, summary(results)
        struck.append({name: modes(result) for name, result in results.items()})
    assert struck[0] == struck[1]
    assert set(struck[0]) == set(names)
