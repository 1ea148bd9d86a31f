"""Files of two saves in one checkpoint: sizes disprove it, times and names hint at it, and nothing else can tell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common import manifest
from shardmerge.common.command.group import main
from shardmerge.common.errors import BadChunkError, CorruptFileError
from tests.phase1_dump.checkpoint.conftest import Saved

FILE, HOUR = "__1_0.distcp", 3600


def shift(path: Path, seconds: float) -> None:
    """Move the time at which a file was written."""
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + int(seconds * 1e9)))


def warnings(saved: Saved, tmp_path: Path) -> tuple[str, ...]:
    """Which a dump gives."""
    return saved.dump(tmp_path / "dump", dry_run=True).warnings


def test_a_checkpoint_as_it_was_saved_gives_no_warning(saved: Saved, tmp_path: Path) -> None:
    assert warnings(saved, tmp_path) == ()


def test_a_file_of_another_step_that_was_put_there_later_is_told(
    saved: Saved, later: Saved, tmp_path: Path
) -> None:
    shutil.copy(later.path / FILE, saved.path / FILE)
    shift(saved.path / FILE, 0.5 * HOUR)

    (told,) = warnings(saved, tmp_path)
    assert f"1 file of {saved.path}, {FILE} first, was written after .metadata" in told


def test_a_file_of_an_earlier_step_that_kept_its_time_is_told(saved: Saved, tmp_path: Path) -> None:
    shift(saved.path / FILE, -2 * HOUR)

    (told,) = warnings(saved, tmp_path)
    assert told.startswith(f"{FILE} in {saved.path} was written 2.0 hours before __")


def test_clocks_that_differ_a_little_are_not_told(saved: Saved, tmp_path: Path) -> None:
    shift(saved.path / FILE, 30)

    assert warnings(saved, tmp_path) == ()


def test_metadata_of_another_iteration_is_told(saved: Saved, tmp_path: Path) -> None:
    saved.path.rename(saved.path.with_name("iter_0000009"))
    renamed = Saved(saved.path.with_name("iter_0000009"), saved.reference)

    (told,) = warnings(renamed, tmp_path)
    assert "was saved as iteration 7" in told


def test_the_step_of_a_folder_whose_name_tells_none_is_that_of_metadata(saved: Saved, tmp_path: Path) -> None:
    saved.path.rename(saved.path.with_name("best"))
    dumped = Saved(saved.path.with_name("best"), saved.reference).dump(tmp_path / "dump")

    assert dumped.warnings == ()
    assert manifest.read(tmp_path / "dump" / "rank-00000" / "manifest.json").step == 7


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (grown, CorruptFileError, r"by \.metadata: it is cut, or of another save"),
        (lambda path: os.truncate(path, 1000), BadChunkError, "the file ends before it does, after 1,000 of"),
    ],
)  # fmt: skip
def test_a_file_of_another_size_is_refused_before_anything_is_written(
    saved: Saved, tmp_path: Path, change: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    change(saved.path / FILE)

    with pytest.raises(error, match=says):
        saved.dump(tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_warnings_stand_in_what_the_command_says(saved: Saved, tmp_path: Path) -> None:
    shift(saved.path / FILE, HOUR / 2)
    given = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference)]
    shown = CliRunner().invoke(
        main, ["dump", *given, "--out", str(tmp_path / "dump"), "--run-id", "run", "--dry-run"]
    )

    assert shown.exit_code == 0
    assert f"Warning: 1 file of {saved.path}, {FILE} first" in shown.stderr
