"""`shardmerge export`: both phases in one command, which goes on after a failure and leaves nothing but its output."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from shardmerge.phase2_merge import verify
from tests.phase1_dump.checkpoint.conftest import Saved


def export(saved: Saved, out: Path, *options: str) -> Result:
    given = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--workers", "1"]
    return CliRunner().invoke(main, ["export", str(out), *given, *options])


def test_a_checkpoint_becomes_a_hugging_face_directory(saved: Saved, tmp_path: Path) -> None:
    result = export(saved, tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert f"Published {tmp_path / 'out'}" in result.stdout
    verify(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", saved.path.name}


def test_it_goes_on_from_what_was_dumped(saved: Saved, tmp_path: Path) -> None:
    saved.dump(tmp_path / "out.dump", run_id="export", max_share_bytes=None)
    written = (tmp_path / "out.dump" / "rank-00000" / "whole-00001.safetensors").stat()

    assert export(saved, tmp_path / "out").exit_code == 0
    shard = (tmp_path / "out" / "model.safetensors").stat()
    assert (shard.st_ino, shard.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not (tmp_path / "out.dump").exists()


def test_an_output_that_exists_is_left_alone(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    result = export(saved, tmp_path / "out")
    assert result.exit_code == 6
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "out.dump").exists()


def test_what_others_put_into_the_dump_stays(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out.dump").mkdir()
    (tmp_path / "out.dump" / "notes.txt").write_text("mine")

    result = export(saved, tmp_path / "out")
    assert result.exit_code == 0
    assert "could not be removed" in result.stderr
    assert [path.name for path in (tmp_path / "out.dump").iterdir()] == ["notes.txt"]
