"""Shards that a person puts back into OUT.partial: right or not, durable or not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.dumps.dumps import Topology, load
from tests.dumps.worlds import MakeWorld
from tests.phase2_merge.test_cli import merge_arguments, run


def test_shards_that_were_put_back_with_cp_are_durable_before_they_are_published(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is adopted and one assembled; `cp` leaves both in the page cache only."""
    one = world(Topology(tp=2)).write()
    assert run(*merge_arguments(one, "--part", "1/1")).exit_code == 0
    shards = sorted((one.folder / "out.partial").glob("*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        copy = shutil.copy2(shard, one.folder / "copy")
        shard.unlink()
        shutil.copy2(copy, shard)
    synced: set[str] = set()
    fsync = os.fsync

    def watched(file: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    assert run(*merge_arguments(one, "--finalize")).exit_code == 0
    assert {shard.name for shard in shards} <= synced
    assert load(one.out) == one.model.tensors
