"""A dump whose folder, or a rank's, is something else: an error that names it, and nothing is destroyed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from tests.phase1_dump.conftest import References

PROVIDER = "tests.phase1_dump.providers:whole"


@pytest.fixture
def dump(references: References) -> Callable[[Path], Result]:
    """`shardmerge dump` of a small model to a folder."""

    def run(out: Path) -> Result:
        given = ["dump", "--model-provider", PROVIDER, "--out", str(out), "--wait", "0", "--run-id", "run"]
        return CliRunner().invoke(
            main, [*given, "--step", "7", "--hf-reference", str(references.config("llama"))]
        )

    return run


def put(kind: str, path: Path) -> None:
    """Something that is not a folder of ours."""
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)


def identity(path: Path) -> tuple[int, int, int, int]:
    """What changes if something is replaced or written; reading a link changes its times."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "fifo"])
def test_something_else_in_place_of_a_rank_is_refused_and_stays(
    kind: str, dump: Callable[[Path], Result], tmp_path: Path
) -> None:
    put(kind, tmp_path / "rank-00000")
    before = identity(tmp_path / "rank-00000")

    result = dump(tmp_path)

    assert result.exit_code == 6, result.output
    assert f"{tmp_path / 'rank-00000'} cannot be the output: it is not what" in result.stderr
    assert identity(tmp_path / "rank-00000") == before
    assert {path.name for path in tmp_path.iterdir()} == {"rank-00000", "rank-00000.failed.json"}


@pytest.mark.parametrize("kind", ["file", "dangling link", "fifo"])
def test_something_else_in_place_of_a_dump_is_refused_and_stays(
    kind: str, dump: Callable[[Path], Result], tmp_path: Path
) -> None:
    put(kind, tmp_path / "out")
    before = identity(tmp_path / "out")

    result = dump(tmp_path / "out")

    assert result.exit_code == 6, result.output
    assert f"{tmp_path / 'out'} cannot be the output: it is not a directory" in result.stderr
    assert identity(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("mark", ["config.json", "model.safetensors", ".metadata"])
def test_a_model_or_a_checkpoint_is_no_place_for_a_dump(
    mark: str, dump: Callable[[Path], Result], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / mark).write_text("{}")

    result = dump(tmp_path / "out")

    assert result.exit_code == 6, result.output
    assert f"it holds {mark}, so it is a model or a checkpoint" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [mark]


def test_a_link_to_a_folder_is_a_place_for_a_dump(dump: Callable[[Path], Result], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")

    assert dump(tmp_path / "out").exit_code == 0
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["rank-00000"]


def test_a_name_of_255_bytes_is_a_name_for_a_dump(dump: Callable[[Path], Result], tmp_path: Path) -> None:
    out = tmp_path / ("d" * 255)

    assert dump(out).exit_code == 0
    assert [path.name for path in out.iterdir()] == ["rank-00000"]


def test_a_link_in_place_of_an_attempt_is_not_followed(
    dump: Callable[[Path], Result], tmp_path: Path
) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    (elsewhere / "rank-00000").mkdir(parents=True)
    (elsewhere / "rank-00000" / "manifest.json").write_text("mine")
    out.mkdir()
    (out / ".rank-00000.0123456789abcdef.partial").symlink_to(elsewhere)
    (out / ".rank-00000.0123456789abcdef.tmp").symlink_to(elsewhere)
    unfinished = out / ".rank-00000.fedcba9876543210.tmp"
    unfinished.mkdir()
    (unfinished / "rank-00000").symlink_to(elsewhere / "rank-00000")

    result = dump(out)

    assert result.exit_code == 0, result.output
    assert "could not be removed" in result.stderr
    assert (elsewhere / "rank-00000" / "manifest.json").read_text() == "mine"
    assert len(list(out.iterdir())) == 4
