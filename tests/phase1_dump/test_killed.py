"""kill -9 at any point of a dump: no rank stands there, and the next dump succeeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world, pieces_of, shapes_of, tiling_faults
from tests.phase1_dump.killing import FAMILY, LAST, MOMENTS
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def killed(references: References, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump by moment, each by a process that was killed at that moment."""
    out = tmp_path_factory.mktemp("killed")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.phase1_dump.killing",
        str(out),
        str(references.config(FAMILY)),
    ]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    assert set(json.loads(found.stdout).values()) == {signal.SIGKILL}
    return out


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank_is_not_there_and_may_be_dumped_again(
    moment: str, killed: Path, references: References
) -> None:
    out = killed / moment
    assert [path.name for path in out.iterdir()] == [".rank-00000.partial"]

    dump_world(by_name(FAMILY), SINGLE, out, references.config(FAMILY))

    assert [path.name for path in out.iterdir()] == ["rank-00000"]
    assert tiling_faults(pieces_of(out), shapes_of(references.weights(FAMILY))) == []


def test_a_process_killed_after_the_rename_leaves_a_complete_rank(
    killed: Path, references: References
) -> None:
    """The last thing is to make the rename itself durable."""
    assert [path.name for path in (killed / LAST).iterdir()] == ["rank-00000"]
    assert tiling_faults(pieces_of(killed / LAST), shapes_of(references.weights(FAMILY))) == []
