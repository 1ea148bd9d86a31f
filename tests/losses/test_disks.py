"""What disks do to a merge: they fill up, fail after the rename, lose power; and names that are too long for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dumps.dumps import load
from tests.dumps.worlds import World
from tests.losses.commands import Strike, end, exit_code, line, merge, run, start
from tests.torture.power import LoopMount, why_not

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk that is smaller than the output."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@needs_root
def test_a_full_disk_is_named_with_a_path_and_takes_no_finished_shard(one: World, small: Path) -> None:
    given = ["merge", one.dump, small / "out", "--hf-reference", one.reference]
    given += ["--workers", 1, "--max-shard-size", "500B"]
    code, said = run(*given)
    assert code == 1
    assert f"No space left on device: '{small / 'out.partial'}/" in said
    assert f"What was written stays in {small / 'out.partial'} for the next attempt." in said
    before = {path.name: path.stat().st_mtime_ns for path in (small / "out.partial").glob("model-*")}
    assert len(before) > 5
    subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
    assert exit_code(*given) == 0
    assert load(small / "out") == one.model.tensors
    after = {name: (small / "out" / name).stat().st_mtime_ns for name in before}
    assert {name for name in before if after[name] != before[name]} == set()


@pytest.mark.parametrize("more", [[], ["--finalize"]], ids=["merge", "finalize"])
def test_what_fails_after_the_rename_is_a_warning_for_it_is_published(one: World, more: list[str]) -> None:
    if more:
        assert exit_code(*merge(one, "--part", "1/1")) == 0
    strikes = [
        Strike("os.rename", "out", "pass"),
        Strike("open", one.folder.name, "raise OSError(5, os.strerror(5), given[0])"),
    ]
    code, said = run(*merge(one, *more), strikes=strikes)
    assert code == 0, said
    assert f"Warning: {one.out} is published" in said
    assert load(one.out) == one.model.tensors


@pytest.mark.parametrize(("length", "code"), [(245, 0), (247, 0), (248, 2), (255, 2), (256, 2)])
def test_a_name_that_is_too_long_is_refused_before_any_work(one: World, length: int, code: int) -> None:
    out = one.folder / ("x" * length)
    before = sorted(one.folder.iterdir())
    ended, said = run("merge", one.dump, out, "--hf-reference", one.reference, "--workers", 1)
    assert ended == code, said
    assert (load(out) == one.model.tensors) if code == 0 else sorted(one.folder.iterdir()) == before


@pytest.mark.reflink
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_dump_that_was_copied_and_merged_survives_a_loss_of_power(
    one: World, tmp_path: Path, kind: str
) -> None:
    """`cp` syncs nothing, and a merge links the copies."""
    if reason := why_not(kind):
        pytest.skip(reason)
    disk = LoopMount(kind, tmp_path / "disk")
    try:
        disk.settle()
        shutil.copytree(one.dump, disk.place / "dump")
        command = ["merge", disk.place / "dump", disk.place / "out", "--hf-reference", one.reference]
        code, said = end(start(line(*command, "--workers", 1)))
        assert code == 0, said
        disk.cut(flushed=True)
        disk.restore()
        assert load(disk.place / "out") == one.model.tensors
        assert exit_code("verify", disk.place / "out") == 0
    finally:
        disk.remove()
