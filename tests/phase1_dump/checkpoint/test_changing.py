"""A checkpoint that others write while its shares are written: no dump that looks complete holds two steps.

The file of one share of one step, and that of another step, have the same sizes and sound checksums: nothing but the
shares' records can tell them apart.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardmerge.common.errors import (
    ChangedCheckpointError,
    MissingSharesError,
    OutputExistsError,
    ShardmergeError,
)
from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
from shardmerge.phase1_dump.shares.take import take
from shardmerge.phase1_dump.torch_dist import folder
from shardmerge.phase2_merge import check
from tests.phase1_dump.checkpoint.conftest import SHARE_BYTES, Saved

ROOT = Path(__file__).parents[3]
FILE = "__0_0.distcp"
# dumps a checkpoint; before block number `moment` it runs a command of the shell, and is killed
KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
from shardmerge.phase1_dump.shares.take import take
checkpoint, reference, out = map(Path, sys.argv[1:4])
moment, command = int(sys.argv[4]), sys.argv[5]
calls = []
def advance(num_bytes):
    calls.append(num_bytes)
    if len(calls) == moment:
        subprocess.run(command, shell=True, check=True)
        os.kill(os.getpid(), signal.SIGKILL)
take(plan_of(checkpoint, reference, Options(max_share_bytes=int(sys.argv[6]))), out, "run", advance=advance)
"""


def copied(name: str) -> Callable[[Path, Path], str]:
    """Return what makes a command that replaces a file of one checkpoint by that of another."""
    return lambda ours, theirs: f"cp {theirs / name} {ours / name}"


# what happens to the first checkpoint, as a command of the shell: by the folders of both
CHANGES: dict[str, Callable[[Path, Path], str]] = {
    "another .metadata": copied(".metadata"),
    "another file": copied(FILE),
    "another file, renamed to its name": lambda ours, theirs: (
        f"cp {theirs / FILE} {ours / FILE}.new && mv {ours / FILE}.new {ours / FILE}"
    ),
    "another file with the time of the old one": lambda ours, theirs: (
        f"touch -r {ours / FILE} {ours}.time && cp {theirs / FILE} {ours / FILE} && touch -r {ours}.time {ours / FILE}"
    ),
    "a file pruned": lambda ours, _theirs: f"rm {ours / FILE}",
    "all files": lambda ours, theirs: f"cp -r {theirs}/. {ours}",
}
SAME_TIME = "another file with the time of the old one"
FIRST, MIDDLE, LAST = 1, 20, 38  # of 38 blocks: when none, some and all others are written


def shares(dump: Path) -> int:
    """How many shares look complete."""
    return len(list(dump.glob("rank-*/manifest.json")))


def is_refused(out: Path, saved: Saved) -> bool:
    """Whether a merge would refuse a dump, since all ranks are missing, some, or one is of another attempt."""
    try:
        check([out], hf_reference=saved.reference)
    except ShardmergeError:
        return True
    return False


@dataclass(slots=True)
class Changing:
    """Dumps a checkpoint, and does something to it before a block is written. `ended` says what came of it."""

    saved: Saved
    command: str
    moment: int
    calls: int = 0

    def advance(self, _num_bytes: int) -> None:
        self.calls += 1
        if self.calls == self.moment:
            subprocess.run(self.command, shell=True, check=True)

    def run(self, out: Path) -> dict[int, ShardmergeError]:
        """Return what went wrong with shares."""
        plan = plan_of(self.saved.path, self.saved.reference, Options(max_share_bytes=SHARE_BYTES))
        return take(plan, out, "run", advance=self.advance, patience=0.0).problems

    def run_and_be_killed(self, out: Path) -> None:
        """Be another process, which is killed at that moment."""
        given = (self.saved.path, self.saved.reference, out, self.moment, self.command, SHARE_BYTES)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, given)], cwd=ROOT, capture_output=True, check=False
        )
        assert killed.returncode == -9, killed.stderr


@pytest.mark.parametrize("moment", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("change", list(CHANGES))
def test_what_was_read_before_and_after_a_change_never_looks_complete(
    saved: Saved, later: Saved, tmp_path: Path, change: str, moment: int
) -> None:
    """Also when the same command is given again, while the checkpoint stays as it is then."""
    out = tmp_path / "dump"
    problems = Changing(saved, CHANGES[change](saved.path, later.path), moment).run(out)

    assert {type(problem) for problem in problems.values()} == {ChangedCheckpointError}
    before = shares(out)
    assert (before, len(problems)) == ((0, 9) if moment == FIRST else (before, 9 - before))
    assert set(problems) == {int(path.name[5:10]) for path in out.glob("rank-*.failed.json")}
    assert is_refused(out, saved)
    if before:
        with pytest.raises(ShardmergeError):
            saved.dump(out)
        assert is_refused(out, saved)
        assert shares(out) == before


@pytest.mark.parametrize("change", [change for change in CHANGES if change != SAME_TIME])
def test_nor_when_the_process_is_killed_that_could_have_seen_it(
    saved: Saved, later: Saved, tmp_path: Path, change: str
) -> None:
    """A file that was given the time of the old one is beyond what anybody could see who comes later."""
    out = tmp_path / "dump"
    Changing(saved, CHANGES[change](saved.path, later.path), MIDDLE).run_and_be_killed(out)
    before = shares(out)

    assert 0 < before < 9
    assert is_refused(out, saved)
    with pytest.raises(ShardmergeError):
        saved.dump(out)
    assert is_refused(out, saved)
    assert shares(out) == before


def test_nor_when_another_process_begins_after_the_change(saved: Saved, later: Saved, tmp_path: Path) -> None:
    """It saw no share of the first one, which had none yet, and writes all that are free."""
    out = tmp_path / "dump"
    first = Changing(saved, CHANGES["all files"](saved.path, later.path), FIRST)

    def advance(num_bytes: int) -> None:
        first.advance(num_bytes)
        if first.calls == 1:
            with pytest.raises(MissingSharesError, match=r"^1 of 9 shares"):
                saved.dump(out, patience=0.0)

    plan = plan_of(saved.path, saved.reference, Options(max_share_bytes=SHARE_BYTES))
    problems = take(plan, out, "run", advance=advance, patience=0.0).problems
    assert list(problems) == [0]
    assert is_refused(out, saved)
    with pytest.raises(OutputExistsError, match=r"rank-00000\.failed\.json says that the checkpoint changed"):
        saved.dump(out)
    assert is_refused(out, saved)


def test_shares_of_two_states_are_of_two_attempts(saved: Saved, tmp_path: Path) -> None:
    """Whichever way they came into one folder: a process that began long ago may complete its share at the end."""
    saved.dump(tmp_path / "before")
    os.utime(saved.path / FILE)
    saved.dump(tmp_path / "after")
    shutil.rmtree(tmp_path / "before" / "rank-00000")
    (tmp_path / "after" / "rank-00000").rename(tmp_path / "before" / "rank-00000")

    assert is_refused(tmp_path / "before", saved)
    with pytest.raises(OutputExistsError, match="before files of it were written again"):
        saved.dump(tmp_path / "before")


def test_what_becomes_of_a_checkpoint_afterwards_is_no_matter(saved: Saved, tmp_path: Path) -> None:
    """Training prunes old checkpoints: a process that still waits for others must not call their dump a failure."""
    saved.dump(tmp_path / "dump")
    plan = plan_of(saved.path, saved.reference, Options(max_share_bytes=SHARE_BYTES))
    shutil.rmtree(saved.path)

    assert not take(plan, tmp_path / "dump", "run", advance=lambda _: None).problems
    assert not is_refused(tmp_path / "dump", saved)


def test_a_file_system_that_fails_for_a_moment_is_not_another_checkpoint(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been recorded as one, and then the dump could never be finished."""
    sound, asked = folder.state_of, list[Path]()

    def failing(path: Path) -> folder.FileState:
        asked.append(path)
        if len(asked) == 40:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return sound(path)

    monkeypatch.setattr(folder, "state_of", failing)
    with pytest.raises(OSError, match="Input/output error"):
        saved.dump(tmp_path / "dump")

    saved.dump(tmp_path / "dump")
    check([tmp_path / "dump"], hf_reference=saved.reference)
