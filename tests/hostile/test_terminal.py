"""Control characters in names, run ids and reasons: refused where they are read, or shown escaped, never obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.command.talk import say
from shardmerge.common.errors import BadInputError, printable
from shardmerge.phase1_dump.generation import Generation
from tests.dumps import dumps
from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import ESCAPE, check, edit_manifest, manifest, run, written

# a title of the window, a line of ours, a text that runs backwards, half a character
NASTY = [ESCAPE, "ok\nSound: everything", "\u202egnp.exe", "\x9b31m", "\x7f"]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("field", ["run_id", "attempt", "architecture"])
def test_a_manifest_with_a_text_that_cannot_be_printed_is_refused(
    world: MakeWorld, field: str, text: str
) -> None:
    one = written(world)
    edit_manifest(one, {field: text})
    assert "a name in it cannot be printed" in check(one, codes=(4,)).stderr
    run("inspect", one.dump, codes=(4,))


@pytest.mark.parametrize("text", NASTY)
def test_a_tensor_of_a_dump_whose_name_cannot_be_printed_is_refused(world: MakeWorld, text: str) -> None:
    one = written(world)
    edit_manifest(one, {"names": [text, *manifest(one)["names"][1:]]})
    assert "the name of a tensor cannot be printed" in check(one, codes=(4,)).stderr


@pytest.mark.parametrize("field", ["drops", "coordinates", "groups"])
def test_keys_that_cannot_be_printed_are_refused(world: MakeWorld, field: str) -> None:
    one = written(world)
    edit_manifest(one, {field: {ESCAPE: [0] if field == "groups" else 0}})
    assert "a name in it cannot be printed" in check(one, codes=(4,)).stderr


def test_facts_and_quantization_that_cannot_be_printed_are_refused(world: MakeWorld) -> None:
    one = written(world)
    facts = manifest(one)["facts"]
    spoiled: list[dict[str, Any]] = [
        {"facts": facts | {"dtype": ESCAPE}},
        {"facts": facts | {"dimensions": {ESCAPE: 1}}},
        {"facts": facts, "quantization": {"excluded": [ESCAPE]}},
        {"quantization": {"layers": {ESCAPE: []}}},
    ]
    for changes in spoiled:
        edit_manifest(one, changes)
        assert "that cannot be printed" in check(one, codes=(4,)).stderr


def test_the_reason_of_a_failed_rank_is_shown_as_one_line(world: MakeWorld) -> None:
    one = written(world)
    reason = f"full\n{ESCAPE}Sound"
    (one.dump / "rank-00005.failed.json").write_text(json.dumps({"failure": {"message": reason}}))
    shown = run("inspect", one.dump, codes=(0,)).output
    assert r"Problem: rank 5 failed: full\n\x1b]0;owned\x07Sound" in shown


def foreign(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [ESCAPE]}))
    dumps.save(folder / "model.safetensors", {name: ("U8", (1,), b"x")})
    return folder


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_tensor_of_a_checkpoint_whose_name_cannot_be_printed_is_refused(
    tmp_path: Path, command: str, text: str
) -> None:
    assert "is not the name of a tensor" in run(command, foreign(tmp_path / "x", text), codes=(4,)).stderr


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_an_architecture_that_cannot_be_printed_is_shown_escaped(tmp_path: Path, command: str) -> None:
    assert r"\x1b]0;owned\x07" in run(command, foreign(tmp_path / "x", "w"), codes=(0,)).output


def test_an_index_with_a_name_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "x", "w")
    index = {"weight_map": {ESCAPE: "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "the name of a tensor cannot be printed" in run("verify", folder, codes=(4,)).stderr


def test_a_file_whose_name_cannot_be_printed_is_shown_escaped(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "x", "w")
    (folder / f"{ESCAPE}\n.safetensors").write_bytes(b"")
    assert r"\x1b]0;owned\x07\n.safetensors is not part" in run("verify", folder, codes=(0,)).output


@pytest.mark.parametrize("place", ["adopted", "assembled"])
def test_a_plan_with_a_name_that_cannot_be_printed_is_refused(merged: World, place: str) -> None:
    path = merged.out / ".shardmerge" / "plan.json"
    plan = json.loads(path.read_bytes())
    plan[place][0]["shard"] = f"{ESCAPE}.safetensors"
    path.write_text(json.dumps(plan))
    assert "the plan calls a shard" in run("verify", merged.out, codes=(4,)).stderr


def test_paths_that_are_not_text_are_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff\x1b"
    folder.mkdir()
    assert r"\udcff\x1b" in run("inspect", folder, codes=(2,)).stderr
    shown = run("inspect", folder, "--json", "--report", tmp_path / "r.json", codes=(2,)).stdout
    assert json.loads(shown)["message"] == json.loads((tmp_path / "r.json").read_bytes())["message"]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("field", ["run_id", "attempt"])
def test_phase_one_refuses_what_phase_two_would(field: str, text: str) -> None:
    given: dict[str, Any] = {"run_id": "run-1", "step": 1, "attempt": "0", field: text}
    with pytest.raises(BadInputError, match="cannot be printed") as error:
        Generation(**given)
    assert error.value.message().isprintable()


def test_talk_obeys_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    say(sys.stderr, f"a\n{ESCAPE}")
    assert capsys.readouterr().err == "a\n\\x1b]0;owned\\x07\n"


def test_colours_are_ours_alone_and_json_means_the_same() -> None:
    assert printable.coloured_lines("\x1b[32m#\x1b[0m\n\x1b[2J") == "\x1b[32m#\x1b[0m\n\\x1b[2J"
    assert printable.lines("\x1b[32m#") == "\\x1b[32m#"
    text = json.dumps({"a": "\x7f\u202e\U000e0001\ud800 b"}, ensure_ascii=False)
    assert printable.json_text(text).isprintable()
    assert json.loads(printable.json_text(text)) == json.loads(text)
