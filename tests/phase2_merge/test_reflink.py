"""A real file system that shares blocks between files: XFS in a file, mounted twice, so that hard links are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shardmerge.phase2_merge import merge

from . import dumps
from .conftest import World
from .dumps import Topology, load

IMAGE_BYTES = 512 << 20
pytestmark = pytest.mark.reflink


def command(*words: object) -> str:
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two places of one file system, between which the kernel links nothing and shares blocks all the same."""
    image, first, second = tmp_path / "image", tmp_path / "first", tmp_path / "second"
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    command("mkfs.xfs", "-q", "-m", "reflink=1", image)
    with ExitStack() as stack:
        for place, how in ((first, ("-o", "loop", image)), (second, ("--bind", first))):
            place.mkdir()
            command("mount", *how, place)
            stack.callback(command, "umount", place)
        yield first, second


def test_fragments_become_shards_that_share_their_blocks(mounts: tuple[Path, Path]) -> None:
    first, second = mounts
    topology = Topology(pp=2)
    model = dumps.model_of(dumps.dense_config())
    one = World(first, model, topology, dumps.cuts_of(model, topology)).write()
    found = merge([one.dump], second / "out", hf_reference=one.reference, workers=1)
    assert found.adopted_by == {"reflink": 2}
    assert found.copied_bytes == 0
    assert "2 adopted (2 by reflink)" in found.text()
    assert load(second / "out") == model.tensors
    for shard in sorted((second / "out").glob("*.safetensors")):
        assert shard.stat().st_nlink == 1
        extents = [line for line in command("filefrag", "-v", shard).splitlines() if ".." in line]
        assert extents
        assert all("shared" in extent for extent in extents)
