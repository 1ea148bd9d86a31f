"""What becomes of earlier corrections: edited by hand since, merged again, or replaced by those of a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shardmerge.common.command.group import main
from shardmerge.common.errors import (
    BadInputError,
    ConfigContradictionError,
    MismatchError,
    MissingConfigError,
    MissingTensorError,
    ProblemsFoundError,
)
from shardmerge.phase2_merge import metadata
from tests.dumps.dumps import Topology, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

BOTH: dict[str, Any] = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "use_cache": True}
REPORT = ".shardmerge/report.json"


def run(*arguments: object) -> str:
    found = CliRunner().invoke(main, [str(one) for one in arguments])
    assert (found.exit_code, found.stderr) == (0, "")
    return found.stdout


@pytest.fixture
def one(world: MakeWorld) -> World:
    made = world(Topology(tp=2, ep=2), moe_config() | BOTH).write()
    made.merge()
    return made


def merge_again(one: World, *options: object) -> str:
    return run("merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1, *options)


def config_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "config.json").read_bytes())
    return found


def edit(out: Path, **values: Any) -> None:
    """Change config.json by hand; a key that becomes ... goes."""
    config = {key: value for key, value in (config_of(out) | values).items() if value is not ...}
    (out / "config.json").write_text(json.dumps(config))


def recorded(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / REPORT).read_bytes())["check"]["corrections"]
    return found


# ---- config.json was edited by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize("edited", [False, None, ..., "no"])
def test_what_was_edited_by_hand_stays_and_its_correction_is_dropped_by_name(one: World, edited: Any) -> None:
    metadata(one.out, new_corrections=["config.use_cache=7", "config.pad_token_id=5"])
    edit(one.out, use_cache=edited)
    after = config_of(one.out)
    said = run("metadata", one.out)
    value = json.dumps(None if edited is ... else edited)
    assert f"Not corrected any more: config.use_cache is {value}, had been corrected to 7." in said
    assert config_of(one.out) == after
    assert recorded(one.out) == {"config.pad_token_id": {"was": None, "now": 5}}
    files = tree(one.out)
    assert run("metadata", one.out).startswith("Nothing to change")
    assert tree(one.out) == files


def test_a_null_that_was_deleted_by_hand_does_not_come_back(one: World) -> None:
    metadata(one.out, new_corrections=["config.added.deep=null"])
    edit(one.out, added=...)
    metadata(one.out)
    assert "added" not in config_of(one.out)
    assert recorded(one.out) == {}


def test_a_later_correction_of_what_was_edited_by_hand_says_what_was_there(one: World) -> None:
    metadata(one.out, new_corrections=["config.use_cache=7"])
    edit(one.out, use_cache=8)
    metadata(one.out, corrections=["config.use_cache=9"])
    assert recorded(one.out) == {"config.use_cache": {"was": 8, "now": 9}}


def test_an_edit_of_one_of_two_places_is_told_and_nothing_changes(one: World) -> None:
    metadata(one.out, corrections=["config.rope_theta=5"])
    edit(one.out, rope_theta=6)
    before = tree(one.out)
    with pytest.raises(ConfigContradictionError):
        metadata(one.out)
    assert tree(one.out) == before
    metadata(one.out, corrections=["config.rope_theta=6"])
    assert config_of(one.out)["rope_parameters"]["rope_theta"] == 6


def test_an_edit_that_leaves_no_object_to_correct_in_stays(one: World) -> None:
    metadata(one.out, new_corrections=["config.added.deep=1"])
    edit(one.out, added=2)
    assert metadata(one.out).dropped == {"config.added.deep": {"was": 1, "now": None}}
    assert config_of(one.out)["added"] == 2


# ---- a merge into its own output ------------------------------------------------------------------------------------


def test_a_merge_again_keeps_what_metadata_corrected_and_says_so(one: World) -> None:
    metadata(one.out, corrections=["config.rope_theta=5"], new_corrections=["config.use_it=[1, 2]"])
    before = config_of(one.out), recorded(one.out)
    said = merge_again(one)
    names = "config.rope_parameters.rope_theta, config.rope_theta, config.use_it"
    assert f"Kept, as earlier commands corrected it: {names}." in said
    assert "Corrected: config.use_it is [1, 2], was null." in said
    assert (config_of(one.out), recorded(one.out)) == before
    assert "nothing to change" in merge_again(one)


def test_what_a_merge_again_is_given_wins(one: World) -> None:
    metadata(one.out, corrections=["config.rope_theta=5", "config.use_cache=false"])
    said = merge_again(one, "--set", "config.rope_theta=6")
    assert "Kept, as earlier commands corrected it: config.use_cache." in said
    config = config_of(one.out)
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"], config["use_cache"]) == (
        6,
        6,
        False,
    )
    assert recorded(one.out)["config.rope_theta"] == {"was": 10000.0, "now": 6}
    assert recorded(one.out)["config.use_cache"] == {"was": True, "now": False}


def test_metadata_of_a_reference_takes_its_config_and_says_what_is_not_corrected_any_more(one: World) -> None:
    metadata(one.out, corrections=["config.use_cache=false"])
    said = run("metadata", one.out, "--hf-reference", one.reference)
    assert "Not corrected any more: config.use_cache is true, had been corrected to false." in said
    assert config_of(one.out)["use_cache"] is True


def tokenizer(one: World) -> Path:
    """Of other files than the reference's, with a module of its own."""
    folder = one.folder / "elsewhere"
    folder.mkdir()
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}')
    (folder / "own.py").write_text("class Tokenizer: ...")
    return folder


def test_a_merge_again_keeps_a_tokenizer_that_metadata_was_given(one: World) -> None:
    metadata(one.out, tokenizer=tokenizer(one))
    before = tree(one.out)
    assert {"vocab.json", "tokenizer_config.json", "own.py"} < before.keys()
    assert "tokenizer.json" not in before
    said = merge_again(one)
    assert "Kept, as an earlier --tokenizer gave it: own.py, tokenizer_config.json, vocab.json." in said
    assert tree(one.out) == before
    assert (
        "removed own.py, tokenizer_config.json, vocab.json"
        in (run("metadata", one.out, "--hf-reference", one.reference).partition(" in ")[0])
    )
    assert "Kept" not in merge_again(one)
    assert (one.out / "tokenizer.json").exists()


def test_a_merge_again_keeps_the_tokenizer_that_the_first_was_given(one: World) -> None:
    folder = tokenizer(one)
    merge_again(one, "--tokenizer", folder)
    before = tree(one.out)
    (one.reference / "generation_config.json").write_text("{}")
    merge_again(one)
    assert tree(one.out).keys() == {*before, "generation_config.json"}
    (folder / "merges.txt").write_text("#")
    assert "Kept" not in merge_again(one, "--tokenizer", folder)
    assert (one.out / "merges.txt").exists()


def test_metadata_says_which_files_it_removed(one: World) -> None:
    said = run("metadata", one.out, "--tokenizer", tokenizer(one)).partition(" in ")[0]
    assert said.startswith("Rewrote own.py, tokenizer_config.json, vocab.json, ")
    assert said.endswith(" and removed tokenizer.json")


# ---- config.json is lost, or what was set does not fit --------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_is_lost_is_written_again_from_a_reference_only(one: World, text: str | None) -> None:
    metadata(one.out, corrections=["config.use_cache=false"])
    whole = tree(one.out)

    def lose() -> None:
        (one.out / "config.json").unlink()
        if text is not None:
            (one.out / "config.json").write_text(text)

    lose()
    with pytest.raises(MissingConfigError if text is None else BadInputError) as error:
        metadata(one.out)
    assert f"`shardmerge metadata {one.out} --hf-reference REFERENCE`" in error.value.message()
    merge_again(one)
    assert tree(one.out) == whole
    lose()
    assert "config.json" in metadata(one.out, hf_reference=one.reference).changed
    assert config_of(one.out) == json.loads(whole["config.json"]) | {"use_cache": True}


@pytest.mark.parametrize("with_reference", [False, True])
def test_what_is_set_and_does_not_fit_is_said_to_be_wrong_itself(one: World, with_reference: bool) -> None:
    reference = one.reference if with_reference else None
    wrong = ["config.vocab_size=25", "config.num_hidden_layers=3"]
    with pytest.raises(ProblemsFoundError) as found:
        metadata(one.out, corrections=wrong, hf_reference=reference)
    do = (
        "Leave away --set config.vocab_size=25, --set config.num_hidden_layers=3, or set what the tensors have; "
        "nothing was changed."
    )
    told = [one for one in found.value.problems if isinstance(one, MismatchError | MissingTensorError)]
    assert {type(one) for one in told} == {MismatchError, MissingTensorError}
    assert all(one.message().endswith(do) for one in told)


def test_a_config_that_does_not_fit_is_told_as_what_it_is(one: World) -> None:
    fits = config_of(one.out)
    edit(one.out, vocab_size=25)
    with pytest.raises(ProblemsFoundError, match=r"config\.json was changed since it was merged"):
        metadata(one.out)
    (one.out / "config.json").write_text(json.dumps(fits))
    reference = json.loads((one.reference / "config.json").read_bytes()) | {"vocab_size": 25}
    (one.reference / "config.json").write_text(json.dumps(reference))
    with pytest.raises(ProblemsFoundError, match=r"reference's config\.json is not this model's: give that"):
        metadata(one.out, hf_reference=one.reference)
