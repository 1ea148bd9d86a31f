"""A real file system that shares blocks between files: XFS in a file, mounted twice, so that hard links are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import xxhash

from shardmerge.common.durable import PAGE
from shardmerge.phase2_merge import merge
from shardmerge.phase2_merge.assembly import bands as output
from shardmerge.phase2_merge.assembly.assemble import assemble
from shardmerge.phase2_merge.assembly.task import ShardTask, SourcePiece, TensorTask
from tests.bench.making import MODEL, filled, split
from tests.dumps import dumps
from tests.dumps.dumps import Topology, load
from tests.dumps.worlds import World
from tests.scale.models import Case

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


def test_rows_of_a_tensor_share_their_blocks_and_the_rest_is_written(mounts: tuple[Path, Path]) -> None:
    made = filled(
        Case("rows", MODEL | {"num_hidden_layers": 1, "num_experts": 2}, split(2)), mounts[0] / "made"
    )
    found = merge([made.dump], mounts[0] / "out", hf_reference=made.reference, workers=2)
    other = merge([made.dump], mounts[0].parent / "other", hf_reference=made.reference, workers=2)
    assert load(mounts[0] / "out") == load(mounts[0].parent / "other")
    assert (other.cloned_bytes, other.assembled_bytes) == (0, found.assembled_bytes)
    # two experts' gate and up, q, k, v and both embeddings are cut by rows of whole pages; k and v are just 1 MiB
    rows = 2 * (2 * 2 * 1024 * 2048 + (4096 + 2 * 512) * 2048 + 2 * 8192 * 2048)
    assert 0.9 * rows < found.cloned_bytes <= rows
    assert "by reflink): " in found.text()
    for shard in made.fragments():
        shard.unlink()
    assert load(mounts[0] / "out") == load(mounts[0].parent / "other")


def test_runs_that_begin_inside_a_block_are_written(
    mounts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "CLONE_BYTES", 1)
    data = np.random.default_rng(1).bytes(4 * PAGE + 2)
    whole, halves = mounts[0] / "whole", [(PAGE, 0), (PAGE, PAGE), (2 * PAGE + 2, 2 * PAGE)]
    for shift, cloned in ((0, 4 * PAGE), (1, 0)):
        whole.write_bytes(b"x" * shift + data)
        pieces = tuple(
            SourcePiece(
                str(whole), 0, shift + at, (at,), (size,), xxhash.xxh3_128_hexdigest(data[at : at + size])
            )
            for size, at in halves
        )
        task = ShardTask("x.safetensors", (TensorTask("w", "U8", (len(data),), pieces),), check=True)
        out = mounts[0] / str(shift)
        out.mkdir()
        _, shared = assemble(task, out)
        assert load(out) == {"w": ("U8", (len(data),), data)}
        assert shared == cloned
