"""`metadata` of a published output: several at once, folders that cannot be listed, whose file is whose."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dumps.dumps import load, tree
from tests.dumps.worlds import World
from tests.losses.commands import Gate, Strike, end, exit_code, line, merge, run, start

SOMEBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def published(one: World) -> World:
    assert exit_code(*merge(one)) == 0
    return one


def theta(out: Path) -> Any:
    return json.loads((out / "config.json").read_bytes())["rope_theta"]


@pytest.mark.parametrize("count", [2, 4])
def test_of_several_processes_at_once_each_is_done_or_refused_and_nothing_is_lost(
    published: World, count: int
) -> None:
    before, codes, values = tree(published.out), [], []
    for first in range(1, 4 * count, count):
        running = {
            value: start(line("metadata", published.out, "--set", f"config.rope_theta={value}"))
            for value in range(first, first + count)
        }
        for value, process in running.items():
            codes.append(end(process)[0])
            values += [value] * (codes[-1] == 0)
        assert theta(published.out) in values
    assert set(codes) <= {0, 6}
    after = tree(published.out)
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} == {"config.json", ".shardmerge/report.json"}
    assert exit_code("verify", published.out) == 0


@pytest.mark.parametrize("event", ["os.listdir", "os.scandir"])
@pytest.mark.parametrize("name", ["out", ".shardmerge", "receipts", "owners"])
def test_a_folder_that_cannot_be_listed_takes_nothing_away(published: World, event: str, name: str) -> None:
    before = tree(published.out)
    fails = Strike(event, name, "raise OSError(5, os.strerror(5), given[0])", always=True)
    code, said = run("metadata", published.out, "--set", "config.rope_theta=5", strikes=[fails])
    assert code in (0, 1), said
    after = tree(published.out)
    shards = {file for file in before if file.endswith(".safetensors")}
    assert {file: after.get(file) for file in shards} == {file: before[file] for file in shards}
    assert exit_code("metadata", published.out, "--set", "config.rope_theta=5") == 0
    assert tree(published.out).keys() == before.keys()
    assert load(published.out) == published.model.tensors


@needs_root
@pytest.mark.parametrize("name", ["out", ".shardmerge", "receipts"])
def test_a_folder_that_may_not_be_read_takes_nothing_away(published: World, name: str) -> None:
    """As another user, who may write and enter it."""
    everything = [published.out, *published.out.rglob("*")]
    for path in everything:
        os.chown(path, SOMEBODY, SOMEBODY)
    before = tree(published.out)
    folder = next(path for path in everything if path.name == name)
    folder.chmod(0o300)
    command = line("metadata", published.out, "--set", "config.rope_theta=5")
    code, said = end(start([*as_somebody(published.folder), *command]))
    folder.chmod(0o700)
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    after = tree(published.out)
    assert after.keys() >= before.keys()
    assert load(published.out) == published.model.tensors


@pytest.mark.parametrize("moment", ["config.json", "report.json", "journal.json"])
def test_a_file_that_a_person_adds_meanwhile_stays(published: World, tmp_path: Path, moment: str) -> None:
    gate = Gate(tmp_path / "gate")
    change = ["metadata", published.out, "--set", "config.rope_theta=5"]
    process = start(line(*change, strikes=[Strike("os.rename", moment, gate.act)]))
    assert gate.reached(process)
    mine = [published.out / name for name in ("notes.txt", "eval/scores.json", ".shardmerge/notes.txt")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    gate.open()
    assert end(process)[0] == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert exit_code("metadata", published.out, "--set", "config.rope_theta=6") == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_a_published_output_that_is_called_partial_is_not_wiped(published: World) -> None:
    kept = published.folder / "out.partial"
    published.out.rename(kept)
    before = tree(kept)
    for more in ([], ["--part", "1/1"], ["--finalize"], ["--break-lock"]):
        code, said = run(*merge(published, *more))
        assert code == 6, said
        assert "it is a checkpoint that was published" in said
    assert tree(kept) == before
    assert not published.out.exists()


def test_a_merge_straight_into_the_name_of_a_partial_output_is_not_wiped(one: World) -> None:
    """OUT is called X.partial, and then comes a merge into X."""
    kept = one.folder / "out.partial"
    assert exit_code("merge", one.dump, kept, "--hf-reference", one.reference) == 0
    before = tree(kept)
    assert exit_code(*merge(one)) == 6
    assert tree(kept) == before


def as_somebody(folder: Path) -> list[str]:
    """What runs a command as a user who may enter the folders above `folder`."""
    for path in (folder, *folder.parents):
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    switch = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    if subprocess.run([*switch, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("this Python lies where another user may not load it")
    return switch


@needs_root
def test_root_gives_new_files_the_owner_and_the_mode_of_the_old_ones(published: World) -> None:
    for path in [published.out, *published.out.rglob("*")]:
        os.chown(path, SOMEBODY, SOMEBODY + 1)
    (published.out / "config.json").chmod(0o640)
    (published.out / ".shardmerge" / "report.json").chmod(0o604)
    (published.reference / "vocab.json").write_text("{}")
    given = ["metadata", published.out, "--hf-reference", published.reference]
    assert exit_code(*given, "--set", "config.rope_theta=5") == 0
    seen = {path.name: path.stat() for path in [published.out, *published.out.rglob("*")] if path.is_file()}
    assert "vocab.json" in seen
    assert {name for name, at in seen.items() if (at.st_uid, at.st_gid) != (SOMEBODY, SOMEBODY + 1)} == set()
    modes = [stat.S_IMODE(seen[name].st_mode) for name in ("config.json", "report.json")]
    assert modes == [0o640, 0o604]
    if shutil.which("setpriv"):  # its owner can go on
        command = line("metadata", published.out, "--set", "config.rope_theta=6")
        assert end(start([*as_somebody(published.folder), *command]))[0] == 0


MOMENTS = [
    ("os.mkdir", "next"), ("os.rename", "journal.json"), ("os.rename", "config.json"), ("os.remove", "journal.json"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "name"), MOMENTS)
def test_a_second_one_at_any_moment_of_the_first_is_refused_and_disturbs_nothing(
    published: World, tmp_path: Path, event: str, name: str
) -> None:
    gate, before = Gate(tmp_path / "gate"), tree(published.out)
    change = ["metadata", published.out, "--set", "config.rope_theta=5"]
    process = start(line(*change, strikes=[Strike(event, name, gate.act)]))
    assert gate.reached(process)
    for other in (["metadata", published.out, "--set", "config.rope_theta=6"], merge(published)):
        code, said = run(*other)
        assert code == 6, said
        assert f"is being written by a rewriting of metadata (process {process.pid} on " in said
    gate.open()
    assert end(process)[0] == 0
    assert theta(published.out) == 5
    assert tree(published.out).keys() == before.keys()


def test_one_that_came_before_another_and_locks_after_it_finds_who_writes_now(
    published: World, tmp_path: Path
) -> None:
    """It has opened the lock; another one comes and ends, and a third one is at work."""
    late, at_work, before = Gate(tmp_path / "late"), Gate(tmp_path / "at work"), tree(published.out)
    change = ["metadata", published.out, "--set"]
    first = start(line(*change, "config.rope_theta=1", strikes=[Strike("fcntl.flock", "", late.act)]))
    assert late.reached(first)
    assert exit_code(*change, "config.rope_theta=2") == 0
    third = start(
        line(*change, "config.rope_theta=3", strikes=[Strike("os.rename", "config.json", at_work.act)])
    )
    assert at_work.reached(third)
    late.open()
    code, said = end(first)
    at_work.open()
    assert end(third)[0] == 0
    assert code == 6, said
    assert theta(published.out) == 3
    assert tree(published.out).keys() == before.keys()
