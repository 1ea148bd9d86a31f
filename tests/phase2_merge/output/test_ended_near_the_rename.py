"""Commands that end just before or after an output has its name: what they say, and what the next takes it for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from tests.dumps import dumps
from tests.dumps.dumps import load, tree
from tests.dumps.worlds import MakeWorld, World
from tests.phase2_merge.test_cli import merge_arguments, run

RUN = """
import os, sys
from pathlib import Path
{}
from shardmerge.common.command.group import main
sys.argv[0] = "shardmerge"
main()
"""
BEFORE_THE_RENAME = RUN.format(
    """
rename = Path.rename
Path.rename = lambda old, new: os.kill(os.getpid(), 9) if old.name == "out.partial" else rename(old, new)
"""
)
AFTER_METADATA_HAS_THE_LOCK = RUN.format(
    """
from shardmerge.phase2_merge.output import journal
journal._prepare = lambda *given: os.kill(os.getpid(), 9)
"""
)
TERMINATED_AFTER_THE_RENAME = RUN.format(
    """
from shardmerge.common import durable
sync = durable.sync_folder
def late(folder):
    sync(folder)
    if (folder / "out").exists():
        os.kill(os.getpid(), 15)
durable.sync_folder = late
"""
)
TERMINATED_AFTER_THE_JOURNAL = RUN.format(
    """
from shardmerge.common import durable
write = durable.write_file
def late(path, data):
    write(path, data)
    if path.name == "journal.json":
        os.kill(os.getpid(), 15)
durable.write_file = late
"""
)


def killed(code: str, *arguments: object) -> None:
    """Run a command that kills itself."""
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False
    )
    assert found.returncode == -signal.SIGKILL, found.stderr


def merge_of_a_newer_dump(one: World, folder: Path) -> Result:
    """Run a merge of another dump of the same model into the same output."""
    model = dumps.model_of(one.model.config, seed=1)
    newer = World(folder, model, one.topology, one.cuts).write()
    return run("merge", newer.dump, one.out, "--hf-reference", newer.reference, "--workers", "1")


def test_an_old_output_whose_metadata_was_killed_is_not_taken_for_an_unfinished_one(world: MakeWorld) -> None:
    one = world().write()
    one.merge()
    killed(AFTER_METADATA_HAS_THE_LOCK, "metadata", one.out, "--set", "config.rope_theta=5")
    kept = one.folder / "out.partial"
    one.out.rename(kept)
    before = tree(kept)
    found = merge_of_a_newer_dump(one, one.folder / "newer")
    assert found.exit_code == 6
    assert "it is a checkpoint that was published" in found.stderr
    assert tree(kept) == before
    assert not one.out.exists()


def test_break_lock_goes_on_from_a_merge_that_was_killed_on_another_host_before_the_rename(
    world: MakeWorld,
) -> None:
    one = world().write()
    killed(BEFORE_THE_RENAME, *merge_arguments(one))
    partial = one.folder / "out.partial"
    assert (partial / ".shardmerge" / "commit.json").exists()
    (record,) = (partial / ".shardmerge" / "owners").iterdir()
    record.write_text(
        json.dumps(json.loads(record.read_bytes()) | {"host": "another-host", "boot": "another"})
    )
    assert "--break-lock" in run(*merge_arguments(one)).stderr
    assert run(*merge_arguments(one), "--break-lock").exit_code == 0
    assert load(one.out) == one.model.tensors


def terminated(code: str, *arguments: object) -> str:
    """Run a command that gets SIGTERM. Returns what it says."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 143, found.stderr
    return found.stderr


def test_a_merge_that_is_ended_after_the_rename_says_that_it_published(world: MakeWorld) -> None:
    one = world().write()
    assert f"{one.out} is published and whole" in terminated(
        TERMINATED_AFTER_THE_RENAME, *merge_arguments(one)
    )
    assert load(one.out) == one.model.tensors


def test_metadata_that_is_ended_between_old_and_new_says_so(world: MakeWorld) -> None:
    one = world().write()
    one.merge()
    talk = terminated(TERMINATED_AFTER_THE_JOURNAL, "metadata", one.out, "--set", "config.rope_theta=5")
    assert f"run `shardmerge metadata {one.out}` to finish it" in talk
    assert run("metadata", one.out).exit_code == 0
    assert json.loads((one.out / "config.json").read_bytes())["rope_theta"] == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for others")
def test_what_root_leaves_beside_the_records_of_others_is_theirs(world: MakeWorld) -> None:
    """An object store keeps no empty file and no empty folder: lock and owners are made again, by whoever comes."""
    one = world().write()
    one.merge()
    records = one.out / ".shardmerge"
    (records / "lock").unlink()
    (records / "owners").rmdir()
    for path in (one.out, *one.out.rglob("*")):
        os.chown(path, 1234, 1234)
    assert run("metadata", one.out, "--set", "config.rope_theta=5").exit_code == 0
    assert {path.name: path.stat().st_uid for path in one.out.rglob("*") if path.stat().st_uid != 1234} == {}
    assert {path.stat().st_gid for path in one.out.rglob("*")} == {1234}
