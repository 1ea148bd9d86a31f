"""`shardmerge export`: both phases in one command, which goes on after a failure and leaves nothing but its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shardmerge import phase2_merge
from shardmerge.common.command.export import ALLOWANCES, RUN_ID
from shardmerge.common.command.group import main
from shardmerge.phase2_merge import merge, options, verify
from tests.dumps.outcomes import facts_of
from tests.phase1_dump.checkpoint.conftest import Saved


def export(saved: Saved, out: Path, *options: str) -> Result:
    given = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--workers", "1"]
    return CliRunner().invoke(main, ["export", str(out), *given, *options])


def test_a_checkpoint_becomes_a_hugging_face_directory(saved: Saved, tmp_path: Path) -> None:
    result = export(saved, tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert f"Published {tmp_path / 'out'}" in result.stdout
    assert "Not compared: settings of the model" in result.stdout
    verify(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", saved.path.name}


def test_it_goes_on_from_what_was_dumped(saved: Saved, tmp_path: Path) -> None:
    saved.dump(tmp_path / "out.dump", run_id=RUN_ID, max_share_bytes=None)
    written = (tmp_path / "out.dump" / "rank-00000" / "whole-00001.safetensors").stat()

    assert export(saved, tmp_path / "out").exit_code == 0
    shard = (tmp_path / "out" / "model.safetensors").stat()
    assert (shard.st_ino, shard.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not (tmp_path / "out.dump").exists()


def test_a_dump_that_a_user_made_there_is_neither_taken_nor_removed(saved: Saved, tmp_path: Path) -> None:
    """Whatever it is called, and at the size of shares that an export would choose."""
    given = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--run-id", "export"]
    assert CliRunner().invoke(main, ["dump", "--out", str(tmp_path / "out.dump"), *given]).exit_code == 0
    before = {path: path.stat() for path in (tmp_path / "out.dump").rglob("*")}

    result = export(saved, tmp_path / "out")
    assert result.exit_code == 6, result.output
    assert "is of run export" in result.stderr
    assert {path: path.stat() for path in (tmp_path / "out.dump").rglob("*")} == before
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_becomes_the_output_and_keeps_its_mode(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o750)

    assert export(saved, tmp_path / "out").exit_code == 0
    verify(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_an_output_that_exists_is_left_alone(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    result = export(saved, tmp_path / "out")
    assert result.exit_code == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert not (tmp_path / "out.dump").exists()


def test_of_two_at_once_the_slower_is_told_that_the_other_published(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faster removes the dump of both when it has published, wherever the slower may be."""

    def overtaken(*given: Any, **options: Any) -> Any:
        monkeypatch.undo()
        assert export(saved, tmp_path / "out").exit_code == 0
        return merge(*given, **options)

    monkeypatch.setattr(phase2_merge, "merge", overtaken)
    result = export(saved, tmp_path / "out")

    assert result.exit_code == 6, result.output
    assert "another export published it meanwhile" in result.stderr
    verify(tmp_path / "out")


def test_options_of_both_phases_reach_them(saved: Saved, tmp_path: Path) -> None:
    """A wrong table is refused before anything is written; the others are seen in what was published."""
    wrong = export(saved, tmp_path / "out", "--architecture", "no_such_module:TABLE")
    assert wrong.exit_code == 2, wrong.output
    assert not (tmp_path / "out.dump").exists()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")

    table = ("--architecture", "shardmerge.common.architectures.families.qwen3_moe:QWEN3_MOE")
    sizes = ("--experts", "packed", "--max-shard-size", "100kB", "--tokenizer", str(tmp_path / "tokenizer"))
    said = ("--set", "config.max_position_embeddings=77", "--set-new", 'config.of_mine="x"', "--allow", "nan")
    result = export(saved, tmp_path / "out", *table, *sizes, *said)
    assert result.exit_code == 0, result.output

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["of_mine"]) == (77, "x")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    names = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.layers.1.mlp.experts.down_proj" in names
    assert len(set(names.values())) > 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--graft", "model.visual.*"), "holds no weights, none of that name"),
        (("--graft", "mtp"), "holds no tensor of multi-token prediction"),
        (("--tokenizer", "/nowhere"), "/nowhere does not exist"),
        (("--set", "config.no_such_key=1"), "no_such_key"),
        (("--drop-mtp",), "knows no multi-token prediction"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_what_the_merge_would_refuse_is_refused_before_the_dump(
    saved: Saved, tmp_path: Path, wrong: tuple[str, ...], says: str
) -> None:
    result = export(saved, tmp_path / "out", *wrong)

    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {saved.path.name}


def test_json_says_what_either_phase_checked_and_what_not(saved: Saved, tmp_path: Path) -> None:
    given = ["--checkpoint", str(saved.path), "--hf-reference", str(saved.reference), "--run-id", "run"]
    command = ["dump", "--out", str(tmp_path / "dump"), *given, "--json"]

    planned = facts_of(CliRunner().invoke(main, [*command, "--dry-run"]))
    assert not (tmp_path / "dump").exists()
    dumped = facts_of(CliRunner().invoke(main, command))
    exported = facts_of(export(saved, tmp_path / "out", "--json"))

    assert set(planned["checked"]) < set(dumped["checked"]) < set(exported["checked"])
    assert "the CRC-32 of every tensor that was read" in dumped["checked"]
    assert any("layernorm_zero_centered_gamma" in text for text in planned["unchecked"])
    assert planned["unchecked"] == dumped["unchecked"]
    assert set(dumped["unchecked"]) < set(exported["unchecked"])
    assert facts_of(export(saved, tmp_path / "out", "--json"))["error"] == "OutputExistsError"


def test_every_word_of_allow_is_one_of_the_merge() -> None:
    assert set(ALLOWANCES) < set(options.ALLOWANCES)


def test_what_others_put_into_the_dump_stays(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out.dump").mkdir()
    (tmp_path / "out.dump" / "notes.txt").write_text("mine")

    result = export(saved, tmp_path / "out")
    assert result.exit_code == 0
    assert "could not be removed" in result.stderr
    assert [path.name for path in (tmp_path / "out.dump").iterdir()] == ["notes.txt"]
