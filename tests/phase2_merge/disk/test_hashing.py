"""Stretches of files that are read at the same time: all of every file, and one problem for each that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.common.errors import CorruptFileError
from shardmerge.phase2_merge import verify
from shardmerge.phase2_merge.disk import hashing as checksums
from tests.dumps.dumps import Topology
from tests.dumps.refusals import problems
from tests.dumps.worlds import MakeWorld

MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([0], [(0, 1)]),
        ([1, 2, 3], [(0, 3)]),
        ([64 * MIB, 1], [(0, 1), (1, 2)]),
        ([63 * MIB, MIB, 5, 200 * MIB, 0], [(0, 2), (2, 4), (4, 5)]),
    ],
)
def test_stretches_are_about_64_mib_and_leave_nothing_out(
    sizes: list[int], expected: list[tuple[int, int]]
) -> None:
    spans = [(sum(sizes[:at]), sum(sizes[: at + 1])) for at in range(len(sizes))]
    assert [(one.start, one.stop) for one in checksums.stretches(spans)] == expected


@pytest.fixture(params=[1, MIB])
def stretch_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch for every tensor, or one for a whole file."""
    monkeypatch.setattr(checksums, "STRETCH_BYTES", request.param)


def damage(path: Path) -> None:
    """Change the first and the last byte of a file's tensors."""
    data = bytearray(path.read_bytes())
    for at in (8 + int.from_bytes(data[:8], "little"), -1):
        data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("stretch_bytes")
def test_a_damaged_file_is_told_once_with_its_first_tensor(world: MakeWorld) -> None:
    one = world(Topology(pp=2)).write()
    for rank in range(2):
        damage(one.rank(rank) / "whole-00001.safetensors")
    found = problems(one, 4)
    assert [(type(error), error.rank) for error in found] == [(CorruptFileError, 0), (CorruptFileError, 1)]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("stretch_bytes")
def test_a_damaged_output_is_told_once_for_each_file(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    one.merge()
    damage(one.out / "model-00002-of-00002.safetensors")
    with pytest.raises(CorruptFileError) as error:
        verify(one.out)
    assert error.value.path == str(one.out / "model-00002-of-00002.safetensors")
