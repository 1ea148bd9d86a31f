"""How an output appears: never over something, never beside another merge, whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shardmerge.common import durable
from shardmerge.common.errors import BadInputError, CorruptFileError, OutputExistsError
from shardmerge.phase2_merge import merge, merge_part
from shardmerge.phase2_merge.commands import merge as merge_dump
from tests.dumps.dumps import Topology, load, tree
from tests.dumps.worlds import MakeWorld


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_output_that_exists_is_left_alone(world: MakeWorld, kind: str) -> None:
    one = world().write()
    if kind == "file":
        one.out.write_text("mine")
    elif kind == "folder":
        (one.out / "mine").mkdir(parents=True)
    else:
        one.out.symlink_to("nowhere")
    with pytest.raises(OutputExistsError) as error:
        one.merge()
    assert error.value.exit_code == 6
    assert not one.folder.joinpath("out.partial").exists()


def test_a_partial_output_of_somebody_else_is_left_alone(world: MakeWorld) -> None:
    one = world().write()
    (one.folder / "out.partial").mkdir()
    (one.folder / "out.partial" / "mine").write_text("mine")
    with pytest.raises(OutputExistsError, match="no merge of shardmerge made it"):
        one.merge()
    assert (one.folder / "out.partial" / "mine").read_text() == "mine"


def test_an_output_that_appears_meanwhile_is_left_alone(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world().write()
    describe = merge_dump._describe
    with monkeypatch.context() as patched:
        patched.setattr(
            merge_dump, "_describe", lambda *given: (describe(*given), one.out.write_text("mine"))
        )
        with pytest.raises(OutputExistsError):
            one.merge()
    assert one.out.read_text() == "mine"
    one.out.unlink()
    one.merge()
    assert load(one.out) == one.model.tensors


def test_a_checkpoint_that_was_published_under_the_name_of_a_partial_output_is_left_alone(
    world: MakeWorld,
) -> None:
    """`mv X X.partial` is how people keep an old one."""
    one = world().write()
    one.merge()
    one.out.rename(one.folder / "out.partial")
    before = tree(one.folder / "out.partial")
    with pytest.raises(OutputExistsError, match="it is a checkpoint that was published"):
        one.merge()
    with pytest.raises(OutputExistsError, match="it is a checkpoint that was published"):
        merge_part([one.dump], one.out, "1/1", hf_reference=one.reference)
    assert tree(one.folder / "out.partial") == before
    assert not one.out.exists()


def test_a_merge_that_fails_leaves_what_it_wrote_and_the_next_one_goes_on(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    talk = StringIO()
    with pytest.raises(ZeroDivisionError), failing_description():
        one.merge(max_shard_bytes=500, talk=talk)
    assert f"Nothing was published. What was written stays in {one.out}.partial" in talk.getvalue()
    shards = {path.name: path.stat() for path in (one.folder / "out.partial").glob("*.safetensors")}
    found = one.merge(max_shard_bytes=500)
    assert found.kept_shards == found.num_shards - found.adopted_shards > 2
    for name, before in shards.items():
        after = (one.out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def failing_description() -> AbstractContextManager[Any]:
    """Make every merge fail when its shards are written."""
    return mock.patch.object(merge_dump, "_describe", side_effect=ZeroDivisionError)


def test_what_fails_after_the_rename_is_a_warning_for_it_is_published(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world().write()
    sync = durable.sync_folder

    def fail(path: Path) -> None:
        if path == one.folder and one.out.exists():
            raise OSError(5, "Input/output error", str(path))
        sync(path)

    monkeypatch.setattr(durable, "sync_folder", fail)
    found = one.merge()
    assert f"Warning: {one.out} is published, but a power loss may still take away its name" in found.text()
    assert load(one.out) == one.model.tensors


@pytest.mark.parametrize(("length", "fits"), [(247, True), (248, False), (255, False)])
def test_a_name_that_leaves_no_room_for_the_partial_output_is_refused_before_any_work(
    world: MakeWorld, length: int, fits: bool
) -> None:
    one = world().write()
    out = one.folder / ("x" * length)
    if fits:
        merge([one.dump], out, hf_reference=one.reference, workers=1)
        assert load(out) == one.model.tensors
    else:
        with pytest.raises(BadInputError, match="is too long for a name"):
            merge([one.dump], out, hf_reference=one.reference, workers=1)


def test_links_in_place_of_our_folders_are_not_followed(world: MakeWorld) -> None:
    one = world().write()
    elsewhere = one.folder / "elsewhere"
    (elsewhere / "receipts").mkdir(parents=True)
    partial = one.folder / "out.partial"
    partial.mkdir()
    (partial / ".shardmerge").symlink_to(elsewhere)
    with pytest.raises(CorruptFileError, match="it is not a folder of its own"):
        one.merge()
    (partial / ".shardmerge").unlink()
    (partial / ".shardmerge").mkdir()
    (partial / ".shardmerge" / "receipts").symlink_to(elsewhere)
    with pytest.raises(CorruptFileError, match="it is not a folder of its own"):
        one.merge()
    assert sorted(elsewhere.rglob("*")) == [elsewhere / "receipts"]
