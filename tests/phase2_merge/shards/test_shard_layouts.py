"""Which bytes a merge moves: counted at TP 8, in the canonical layout, and by which means fragments are adopted."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shardmerge.common.command import byte_count
from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge import merge
from shardmerge.phase2_merge.assembly.assemble import STAGING_BYTES
from shardmerge.phase2_merge.assembly.task import ShardTask, SourcePiece, TensorTask
from shardmerge.phase2_merge.assembly.workers import pool, write_shard
from shardmerge.phase2_merge.commands import report
from tests.dumps.dumps import Cut, Topology, load, moe_config
from tests.dumps.worlds import MakeWorld


def test_at_tp_8_and_etp_1_only_attention_dense_and_embedding_bytes_move(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(Topology(tp=8), moe_config(experts=8))
    for name, (_, shape, _) in one.model.tensors.items():
        if ".experts." in name:
            one.cuts[name] = [Cut(int(name.split(".")[5]), (0, 0), shape)]
    one.write()
    moved = 0
    write = os.write

    def counting(file: int, data: memoryview) -> int:
        nonlocal moved
        count = write(file, data)
        moved += count
        return count

    monkeypatch.setattr(os, "write", counting)
    found = one.merge()
    split = sum(
        len(data)
        for name, (_, shape, data) in one.model.tensors.items()
        if ".experts." not in name and len(shape) == 2 and not name.endswith("mlp.gate.weight")
    )
    assert found.assembled_bytes == split
    assert split < moved < split + 8192  # and one header
    assert load(one.out) == one.model.tensors


def test_canonical_writes_everything_in_layer_order_into_full_shards(world: MakeWorld) -> None:
    one = world(Topology(ep=4, pp=2), moe_config()).write()
    found = one.merge(layout="canonical", max_shard_bytes=3000)
    assert (found.adopted_shards, found.adopted_by) == (0, {})
    assert load(one.out) == one.model.tensors
    layers: list[list[int]] = []
    for path in sorted(one.out.glob("*.safetensors")):
        assert path.stat().st_nlink == 1
        single = path.parent / "single"
        single.mkdir()
        os.link(path, single / path.name)
        names = list(load(single))
        (single / path.name).unlink()
        single.rmdir()
        layers.append([int(name.split(".")[2]) for name in names if ".layers." in name])
    flat = [sorted(of) for of in layers if of]
    assert all(before[-1] <= after[0] for before, after in pairwise(flat))
    sizes = [sum(np.prod(shape) for _, shape, _ in one.model.tensors.values()) * 2, found.assembled_bytes]
    assert sizes[0] == sizes[1]


def test_an_unknown_layout_is_refused(world: MakeWorld) -> None:
    with pytest.raises(BadInputError, match="Known: adopt, canonical"):
        world().write().merge(layout="flat")


def test_canonical_is_proposed_for_many_shards(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world(Topology(pp=2)).write()
    monkeypatch.setattr(report, "MANY_SHARDS", 1)
    assert "2 shards are slow to open: --layout canonical" in one.merge(dry_run=True).text()
    assert "slow to open" not in one.merge(dry_run=True, layout="canonical").text()


def test_a_worker_stays_under_100_mib_whatever_the_tensor(tmp_path: Path) -> None:
    rows, row_bytes = 40, 4 << 20  # 160 MiB, cut by columns: both staging buffers are filled
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(rows * row_bytes)
    half = (rows, row_bytes // 2)
    pieces = tuple(
        SourcePiece(str(tmp_path / "zeros"), 0, at * rows * half[1], (0, at * half[1]), half, "")
        for at in range(2)
    )
    task = ShardTask("shard", (TensorTask("w", "U8", (rows, row_bytes), pieces),), check=False)
    with pool(2) as executor:
        written = executor.submit(write_shard, task, _records(tmp_path), STAGING_BYTES).result()
        assert written.num_bytes > 160 << 20
        peaks = [_peak(pid) for pid in executor._processes]  # type: ignore[attr-defined]
    assert STAGING_BYTES < max(peaks) < 100 << 20


def _records(folder: Path) -> Path:
    (folder / ".shardmerge" / "receipts").mkdir(parents=True)
    return folder


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_the_summary_tells_what_was_written_and_how_long_each_stage_took(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:

    one = world(Topology(tp=2)).write()
    linked = one.merge()
    written = linked.assembled_bytes / (linked.assembled_bytes + linked.adopted_bytes)
    assert f"assembled: {written:.0%} of a plain copy; proof " in linked.text()
    assert linked.copied_bytes == 0
    assert list(linked.stages) == ["proof", "adopting", "assembling", "publishing"]
    assert sum(linked.stages.values()) <= linked.seconds + 0.01

    def other_file_system(_old: Path, _new: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    copied = merge([one.dump], one.folder / "far", hf_reference=one.reference, workers=1)
    assert copied.copied_bytes == copied.adopted_bytes == linked.adopted_bytes
    assert f"0 B not copied, {byte_count.show(copied.copied_bytes)} copied, " in copied.text()
    assert "assembled: 100% of a plain copy" in copied.text()
