"""kill -9 at any point of a dump: no rank stands there, and the next dump succeeds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world, pieces_of, shapes_of, tiling_faults
from tests.phase1_dump.killing import count_fsyncs, dump_and_die
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import SINGLE

# (function of os, how many calls of it succeed): in the first file, in a later one, before the manifest has its
# name, and before the directory has
MOMENTS = [("write", 0), ("write", 3), ("write", 40), ("fsync", 2), ("rename", 0), ("rename", 1)]


@pytest.mark.parametrize(("function", "calls"), MOMENTS)
def test_a_killed_rank_is_not_there_and_may_be_dumped_again(
    function: str, calls: int, ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    reference = references.config("qwen3_moe")

    assert ranks.call(dump_and_die, tmp_path, reference, function, calls) == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".rank-00000.partial"]

    dump_world(by_name("qwen3_moe"), SINGLE, tmp_path, reference)

    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000"]
    assert tiling_faults(pieces_of(tmp_path), shapes_of(references.weights("qwen3_moe"))) == []


def test_a_process_killed_after_the_rename_leaves_a_complete_rank(
    ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    """The last thing is to make the rename itself durable."""
    fsyncs = ranks.call(count_fsyncs, tmp_path / "counted", references.config("qwen3_moe"))

    out = tmp_path / "killed"
    assert (
        ranks.call(dump_and_die, out, references.config("qwen3_moe"), "fsync", fsyncs - 1) == signal.SIGKILL
    )

    assert [path.name for path in out.iterdir()] == ["rank-00000"]
    assert tiling_faults(pieces_of(out), shapes_of(references.weights("qwen3_moe"))) == []
