"""Commands that are killed just before or after an output has its name, and what the next command takes it for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

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
