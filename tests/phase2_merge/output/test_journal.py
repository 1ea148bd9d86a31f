"""How files of an output are replaced: killed anywhere, each is old or new, and the next command finishes it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardmerge.common import durable
from shardmerge.common.errors import CorruptFileError, OutputLockedError
from shardmerge.common.processes import owner
from shardmerge.phase2_merge import diff, inspect, merge, metadata, verify
from shardmerge.phase2_merge.output import journal
from tests.dumps.dumps import Topology, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

JOURNAL = ".shardmerge/journal.json"
KILLED = """
import os, signal, sys
from shardmerge.phase2_merge import metadata

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

def die_at(step):
    def count(event, given):
        nonlocal step
        if event in CHANGES or (event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            if not step:
                os.kill(os.getpid(), signal.SIGKILL)
            step -= 1
    sys.addaudithook(count)

reference, *outs = sys.argv[1:]
for step, out in enumerate(outs):
    child = os.fork()
    if not child:
        die_at(step)
        metadata(out, hf_reference=reference)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
STEPS = 48


def published(world: MakeWorld) -> World:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    one.merge(max_shard_bytes=700)
    return one


def change(reference: Path) -> None:
    """Another config.json, and a sidecar that is called otherwise."""
    config = json.loads((reference / "config.json").read_bytes())
    (reference / "config.json").write_text(json.dumps(config | {"rope_theta": 5e6}))
    (reference / "tokenizer.json").rename(reference / "vocab.json")


def inodes(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change, of every file and folder."""
    return {
        path.relative_to(out).as_posix(): ((stat := path.lstat()).st_ino, stat.st_mtime_ns)
        for path in out.rglob("*")
        if path.name != "owners"  # a record came and went
    }


def files(out: Path) -> dict[str, bytes]:
    """What a reader finds: all files but our records of a rewriting that is going on."""
    going_on = (JOURNAL, ".shardmerge/next/", ".shardmerge/.journal.json.", ".shardmerge/owners/")
    return {name: data for name, data in tree(out).items() if not name.startswith(going_on)}


def test_killed_at_any_step_each_file_is_old_or_new_and_the_next_command_ends_with_the_new_ones(
    world: MakeWorld, tmp_path: Path
) -> None:
    one = world(Topology(tp=2)).write()
    one.merge()
    old = tree(one.out)
    change(one.reference)
    shutil.copytree(one.out, tmp_path / "new")
    metadata(tmp_path / "new", hf_reference=one.reference)
    new = tree(tmp_path / "new")
    assert {name for name in {*old, *new} if old.get(name) != new.get(name)} == {
        "config.json", "tokenizer.json", "vocab.json", ".shardmerge/report.json",
    }  # fmt: skip
    outs = [tmp_path / f"killed-{step}" for step in range(STEPS)]
    for out in outs:
        shutil.copytree(one.out, out)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(one.reference), *map(str, outs)]
    codes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert (codes[0], codes[-1]) == ("9", "0")  # 9: killed; at last there were fewer steps than that
    seen = [_after_the_kill(one, out, old, new, by_merge=step % 2 == 1) for step, out in enumerate(outs)]
    order = ["old", "journal", "new"]
    assert sorted(seen, key=order.index) == seen  # the journal is one point: old before it, new after it
    assert min(seen.count(state) for state in order) >= 3
    mixed = [state for state, code in zip(seen, codes, strict=True) if code == "9"]
    assert mixed.count("journal") >= 4  # one for every file, at least


def _after_the_kill(
    one: World, out: Path, old: dict[str, bytes], new: dict[str, bytes], *, by_merge: bool
) -> str:
    """Check what a killed `metadata` left, let the next command finish it; what was found."""
    left, before = files(out), inodes(out)
    assert all(left.get(name) in (old.get(name), new.get(name)) for name in {*left, *old, *new})
    is_interrupted = (out / JOURNAL).exists()
    warning = f"a `shardmerge metadata` of {out} was interrupted: some JSON files are old and some new"
    assert any(text.startswith(warning) for text in verify(out, verify="size").warnings) is is_interrupted
    assert any(text.startswith(warning) for text in inspect(out).problems) is is_interrupted
    diff(out, one.out)
    assert inodes(out) == before  # who only reads changes nothing
    if is_interrupted and not by_merge:
        metadata(out)
        assert tree(out) == new
    elif not is_interrupted:
        assert left in (old, new)
    if by_merge:
        merge([one.dump], out, hf_reference=one.reference, workers=1)
    else:
        metadata(out, hf_reference=one.reference)
    assert tree(out) == new
    assert verify(out, verify="size").warnings == ()
    return "journal" if is_interrupted else "old" if left == old else "new"


def test_nothing_else_in_the_output_changes(world: MakeWorld) -> None:
    one = published(world)
    (one.out / "README.md").write_text("mine")
    (one.out / "eval").mkdir()
    (one.out / "eval" / "scores.txt").write_text("0.5")
    (one.out / "eval" / "next").mkdir()
    (one.out / "link").symlink_to("config.json")
    (one.out / "folder").symlink_to("eval")
    (one.out / ".shardmerge" / "notes.txt").write_text("mine")
    folder, before = one.out.stat().st_ino, inodes(one.out)
    change(one.reference)
    report = metadata(one.out, hf_reference=one.reference)
    assert report.changed == ("vocab.json", "config.json", ".shardmerge/report.json")
    assert report.removed == ("tokenizer.json",)
    after = inodes(one.out)
    named = {*report.changed, *report.removed, ".shardmerge"}  # the folder of records has another time
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == named
    assert (one.out.stat().st_ino, after[".shardmerge"][0]) == (folder, before[".shardmerge"][0])
    assert (one.out / "link").readlink() == Path("config.json")
    assert sorted(path.name for path in one.folder.iterdir()) == ["dump", "out", "reference"]


def test_a_file_that_stays_as_it_is_is_not_touched(world: MakeWorld) -> None:
    one = published(world)
    before = inodes(one.out)
    assert metadata(one.out, hf_reference=one.reference).changed == ()
    assert inodes(one.out) == before


def test_an_output_behind_a_link_stays_behind_it(world: MakeWorld) -> None:
    one = published(world)
    link = one.folder / "link"
    link.symlink_to("out")
    metadata(link, corrections=["config.rope_theta=5"])
    assert link.is_symlink()
    assert json.loads((one.out / "config.json").read_bytes())["rope_theta"] == 5


@contextmanager
def locked(out: Path) -> Iterator[None]:
    held = os.open(out / ".shardmerge" / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(held)


def test_another_rewriting_is_respected_by_who_writes_and_disturbs_nobody_who_reads(world: MakeWorld) -> None:
    one = published(world)
    before = tree(one.out)
    with locked(one.out):
        with pytest.raises(OutputLockedError):
            metadata(one.out, corrections=["config.rope_theta=5"])
        with pytest.raises(OutputLockedError):
            one.merge(max_shard_bytes=700, corrections=["config.rope_theta=5"])
        verify(one.out)
        inspect(one.out)
    assert tree(one.out) == before


def test_of_several_at_once_each_is_done_or_refused_and_the_output_is_that_of_the_last(
    world: MakeWorld,
) -> None:
    one = published(world)
    shards = {name: stat for name, stat in inodes(one.out).items() if name.endswith(".safetensors")}
    names = set(tree(one.out))

    def set_theta(theta: int) -> int | None:
        try:
            metadata(one.out, corrections=[f"config.rope_theta={theta}"])
        except OutputLockedError:
            return None
        return theta

    with ThreadPoolExecutor(4) as pool:
        done = {theta for theta in pool.map(set_theta, range(1, 41)) if theta is not None}
    assert done
    assert json.loads((one.out / "config.json").read_bytes())["rope_theta"] in done
    report = json.loads((one.out / ".shardmerge" / "report.json").read_bytes())
    theta = json.loads((one.out / "config.json").read_bytes())["rope_theta"]
    assert report["check"]["corrections"] == {"config.rope_theta": {"was": 10000.0, "now": theta}}
    assert set(tree(one.out)) == names
    assert {name: inodes(one.out)[name] for name in shards} == shards
    assert verify(one.out).warnings == ()


def test_a_full_disk_before_the_journal_changes_nothing(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = published(world)
    before = tree(one.out)
    write = durable.write_file

    def full(path: Path, data: bytes) -> None:
        if path.name == "report.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", full)
        with pytest.raises(OSError, match="No space left"):
            metadata(one.out, corrections=["config.rope_theta=5"])
    assert files(one.out) == before
    assert verify(one.out).warnings == ()
    assert metadata(one.out).changed == ()
    assert tree(one.out) == before


def test_a_file_that_cannot_be_replaced_leaves_the_journal_and_is_replaced_later(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = published(world)
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "report.json":
            raise OSError(5, "Input/output error")
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Input/output"):
            metadata(one.out, corrections=["config.rope_theta=5"])
    assert verify(one.out).warnings[0].endswith(f"run `shardmerge metadata {one.out}` to finish it")
    report = metadata(one.out)
    assert (report.changed, report.corrections["config.rope_theta"]["now"]) == ((), 5)
    assert verify(one.out).warnings == ()


@pytest.mark.parametrize(
    "name", ["../mine", "/etc/hostname", "", "a/../../mine", "model-00001-of-00002.safetensors"]
)
@pytest.mark.parametrize("part", ["replace", "remove"])
def test_a_journal_that_names_what_is_not_rewritten_touches_nothing(
    part: str, name: str, world: MakeWorld
) -> None:
    one = published(world)
    mine = one.folder / "mine"
    mine.write_text("keep me")
    journal = {"schema_version": 1, "replace": [], "remove": []} | {part: [name]}
    (one.out / JOURNAL).write_text(json.dumps(journal))
    before = inodes(one.out)
    with pytest.raises(CorruptFileError, match="is not a file that is rewritten"):
        metadata(one.out)
    assert (mine.read_text(), inodes(one.out)) == ("keep me", before)


def test_a_journal_that_lists_no_files_is_refused(world: MakeWorld) -> None:
    one = published(world)
    (one.out / JOURNAL).write_text("{}")
    with pytest.raises(CorruptFileError, match=r"journal.json"):
        metadata(one.out)


def test_a_shard_can_never_be_replaced(world: MakeWorld) -> None:
    one = published(world)
    held = journal.rewriting(one.out, owner.here("a test"), None, lambda: None)
    with held as lock, pytest.raises(AssertionError):
        journal.replace(lock, {"model-00001-of-00002.safetensors": b""}, [])
