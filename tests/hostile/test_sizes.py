"""Files that are far larger than any model needs are refused before they are read: here of ten sparse gigabytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardmerge.common import plausible_sizes
from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import check, in_little_memory, merge, run, written

HUGE = 10 << 30


def grow(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o644)
    os.truncate(path, HUGE)


@pytest.mark.parametrize(
    "name",
    ["dump/rank-00000/manifest.json", "reference/config.json", "reference/model.safetensors.index.json",
     "reference/tokenizer.json"],
)  # fmt: skip
def test_a_file_of_ten_gigabytes_beside_a_small_dump_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world)
    grow(one.folder / name)
    assert "are plausible" in merge(one, codes=(4,)).stderr


@pytest.mark.parametrize(
    "name",
    ["config.json", "hf_quant_config.json", "model.safetensors.index.json", ".shardmerge/ledger.parquet",
     ".shardmerge/plan.json"],
)  # fmt: skip
def test_a_file_of_ten_gigabytes_in_a_small_output_is_refused(merged: World, name: str) -> None:
    path = merged.out / name
    path.unlink(missing_ok=True)
    grow(path)
    assert f"{path} is damaged: it has 10,737,418,240 bytes" in run("verify", merged.out, codes=(4,)).stderr


def test_the_record_of_a_failed_rank_that_has_ten_gigabytes_is_not_read(world: MakeWorld) -> None:
    one = written(world)
    grow(one.dump / "rank-00009.failed.json")
    check(one, codes=(0,))
    assert "at most 1,048,576 are plausible" in run("inspect", one.dump, codes=(0,)).output


def test_what_is_plausible_grows_with_the_weights_beside_up_to_a_ceiling(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    grow(index)
    assert plausible_sizes.INDEX.limit(index, tmp_path) == 64 << 20
    os.truncate(index, 1 << 20)
    (tmp_path / "a.safetensors").touch()
    os.truncate(tmp_path / "a.safetensors", 100 << 20)
    os.truncate(index, 65 << 20)
    assert plausible_sizes.INDEX.limit(index, tmp_path) == (64 << 20) + (100 << 20)
    os.truncate(tmp_path / "a.safetensors", HUGE)
    assert plausible_sizes.INDEX.limit(index, tmp_path) == 1 << 30


def test_a_manifest_that_says_how_long_a_header_is_does_not_make_it_read_the_data(world: MakeWorld) -> None:
    """A sparse fragment of 10 GB, whose header the manifest says to have as many bytes: refused in a little memory."""
    one = written(world)
    path = one.rank(0) / "whole-00001.safetensors"
    grow(path)
    ended = in_little_memory("check", one.dump, "--hf-reference", one.reference)
    assert ended.returncode == 4, ended.stderr
    assert "10,737,418,240 bytes, the manifest says" in ended.stderr
