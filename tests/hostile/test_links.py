"""Symbolic links: followed inside the folder that was given and to the blobs of a Hub cache, refused otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.dumps.dumps import load
from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import check, merge, run, written


def move_out(path: Path, to: Path) -> Path:
    """Move a file or folder, and leave a link to it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    path.symlink_to(to)
    return to


def test_a_rank_that_lies_in_another_folder_is_refused_and_the_message_says_what_to_give(
    world: MakeWorld,
) -> None:
    one = written(world)
    other = move_out(one.rank(1), one.folder / "other" / "rank-00001").parent
    assert f"Remove the link, and give {other} as a further DUMP." in check(one, codes=(4,)).stderr
    one.rank(1).unlink()
    run("check", one.dump, other, "--hf-reference", one.reference, codes=(0,))


def test_a_rank_that_has_another_name_elsewhere_is_to_be_put_in_place_of_the_link(world: MakeWorld) -> None:
    one = written(world)
    elsewhere = move_out(one.rank(1), one.folder / "elsewhere")
    told = check(one, codes=(4,)).stderr
    assert "Put the folder itself in place of the link, called rank-00001." in told
    assert "DUMP" not in told
    one.rank(1).unlink()
    elsewhere.rename(one.rank(1))
    check(one, codes=(0,))


@pytest.mark.parametrize("name", ["manifest.json", "whole-00001.safetensors", "split-00001.safetensors"])
def test_a_file_of_a_rank_that_lies_outside_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world)
    move_out(one.rank(0) / name, one.folder / "outside")
    assert f"leads out of {one.dump}" in merge(one, codes=(4,)).stderr
    assert not one.out.exists()


def test_links_inside_of_a_dump_are_followed(world: MakeWorld) -> None:
    one = written(world)
    move_out(one.rank(1), one.dump / "node-7" / "rank-00001")
    move_out(one.rank(0) / "whole-00001.safetensors", one.dump / "node-7" / "file")
    merge(one, codes=(0,))
    assert load(one.out) == one.model.tensors


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_reference_that_lies_outside_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world, weights=True)
    move_out(one.reference / name, one.folder / "outside")
    assert f"leads out of {one.reference}" in check(one, codes=(4,)).stderr


@pytest.mark.parametrize("name", ["tokenizer.json", "modeling.py"])
def test_a_sidecar_that_lies_outside_is_not_copied(world: MakeWorld, name: str) -> None:
    one = written(world)
    secret = one.folder / "secret"
    secret.write_text("root:x:0:0")
    (one.reference / "tokenizer_config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    (one.reference / name).unlink(missing_ok=True)
    (one.reference / name).symlink_to(secret)
    assert f"{one.reference / name} is damaged" in merge(one, codes=(4,)).stderr
    assert not one.out.exists()


def test_a_sidecar_that_is_a_link_to_nothing_is_not_left_out_silently(world: MakeWorld) -> None:
    one = written(world)
    (one.reference / "vocab.json").symlink_to("nowhere")
    assert "it is a link to nothing" in merge(one, codes=(4,)).stderr


def test_a_snapshot_of_the_hub_is_a_reference(world: MakeWorld) -> None:
    """CACHE/models--NAME/snapshots/COMMIT/FILE -> ../../blobs/SHA"""
    one = written(world, weights=True)
    model = one.folder / "hub" / "models--Qwen--tiny"
    snapshot, blobs = model / "snapshots" / "0123abcd", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sorted(one.reference.iterdir()):
        path.rename(blobs / f"sha-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha-{path.name}")
    shutil.rmtree(one.reference)
    run("merge", one.dump, one.out, "--hf-reference", snapshot, codes=(0,))
    assert (one.out / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert not (one.out / "tokenizer.json").is_symlink()
    run("verify", snapshot, codes=(0,))


@pytest.mark.parametrize("name", [".shardmerge", "config.json", "model-00001-of-00002.safetensors"])
def test_an_output_with_a_part_that_lies_outside_is_refused(merged: World, name: str) -> None:
    move_out(merged.out / name, merged.folder / "outside")
    assert f"leads out of {merged.out}" in run("verify", merged.out, codes=(4,)).stderr


def test_what_is_called_as_weights_is_not_a_sidecar(world: MakeWorld) -> None:
    one = written(world)
    names = [
        "tokenizer.model.safetensors",
        "tokenizer.model.bin",
        "tokenizer.model.index.json",
        "tokenizer.model.pth",
    ]
    for name in names:
        (one.reference / name).write_bytes(b"x")
    (one.reference / "tokenizer.model.v3").write_bytes(b"x")
    merge(one, codes=(0,))
    assert {path.name for path in one.out.glob("tokenizer*")} == {"tokenizer.json", "tokenizer.model.v3"}
