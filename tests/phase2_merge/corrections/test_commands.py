"""`--set` and `--set-new` of every command: what stands in config.json and the report, and what a later run repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shardmerge.common.command.group import main
from shardmerge.phase2_merge import metadata
from tests.dumps.dumps import Topology, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

BOTH: dict[str, Any] = {
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "norm_topk_prob": True,
    "rope_scaling": None,
    "use_cache": True,
    "pad_token_id": None,
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def written(world: MakeWorld) -> World:
    return world(Topology(tp=2, ep=2), moe_config() | BOTH).write()


def config_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "config.json").read_bytes())
    return found


def recorded(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / ".shardmerge" / "report.json").read_bytes())
    corrections: dict[str, Any] = found["check"]["corrections"]
    return corrections


def test_check_merge_and_metadata_take_both_options_and_say_all_keys_that_changed(world: MakeWorld) -> None:
    one = written(world)
    options = ["--set", "config.rope_theta=5000000", "--set-new", "config.use_it=[1, 2]"]
    said = (
        "Corrected: config.rope_parameters.rope_theta is 5000000.0, was 10000.0.",
        "Corrected: config.rope_theta is 5000000.0, was 10000.0.",
        "Corrected: config.use_it is [1, 2], was null.",
    )
    given = [one.dump, "--hf-reference", one.reference]
    for command in (
        ["check", *given],
        ["merge", one.dump, one.out, *given[1:], "--workers", 1],
        ["merge", one.dump, one.out, *given[1:], "--workers", 1],
        ["metadata", one.out],
        ["metadata", one.out, *given[1:]],
    ):
        found = run(*command, *options)
        assert (found.exit_code, found.stderr) == (0, "")
        assert [line in found.stdout for line in said] == [True, True, True]
    config = config_of(one.out)
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (5000000.0, 5000000.0)
    assert config["use_it"] == [1, 2]


def test_parts_of_a_merge_take_both_options(world: MakeWorld) -> None:
    one = written(world)
    given = ["merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1]
    options = ["--set", "config.rope_theta=7", "--set-new", "config.rope_scaling.factor=2"]
    for last in (["--part", "1/2"], ["--part", "2/2"], ["--finalize"]):
        assert run(*given, *options, *last).exit_code == 0
    assert config_of(one.out)["rope_scaling"] == {"factor": 2}
    assert config_of(one.out)["rope_parameters"]["rope_theta"] == 7


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "config.norm_topk_prob=False"],
        ["--set", "config.norm_topk_prob=0"],
        ["--set", "config.rope_teta=5"],
        ["--set", "config.rope_theta=5", "--set", "config.rope_parameters.rope_theta=6"],
        ["--set-new", "config.norm_topk_prob=False"],
        ["--set-new", "facts.vendor=1"],
        ["--set-new", 'config.quantization_config={"quant_algo": "FP8"}'],
        ["--set", "config.hidden_size.a=5"],
        ["--set", "quantization.quant_algo=FP8"],
    ],
)
def test_what_is_refused_exits_with_2_and_changes_nothing(world: MakeWorld, options: list[str]) -> None:
    one = written(world)
    one.merge()
    before = tree(one.out)
    given = ["--hf-reference", one.reference]
    for command in (
        ["metadata", one.out],
        ["metadata", one.out, *given],
        ["check", one.dump, *given],
        ["merge", one.dump, one.out, *given],
    ):
        assert run(*command, *options).exit_code == 2
    assert tree(one.out) == before


@pytest.mark.parametrize("option", ["--set", "--set-new"])
@pytest.mark.parametrize("text", ['config.architectures=["Qwen3ForCausalLM"]', "config.hidden_size=16"])
def test_what_is_corrected_is_judged_as_if_it_had_stood_there(
    option: str, text: str, world: MakeWorld
) -> None:
    one = written(world)
    one.merge()
    assert run("metadata", one.out, option, text).exit_code in (3, 4)
    assert run("check", one.dump, "--hf-reference", one.reference, option, text).exit_code in (3, 4)


def test_a_later_metadata_repeats_what_was_set_whatever_its_type(world: MakeWorld) -> None:
    one = written(world)
    one.merge(
        new_corrections=['config.use_cache="word"', "config.pad_token_id=[5]", "config.added.deep=null"]
    )
    told = {
        "config.use_cache": {"was": True, "now": "word"},
        "config.pad_token_id": {"was": None, "now": [5]},
        "config.added.deep": {"was": None, "now": None},
    }
    assert recorded(one.out) == told
    before = tree(one.out)
    assert metadata(one.out).changed == ()
    assert tree(one.out) == before
    metadata(one.out, hf_reference=one.reference, new_corrections=["config.use_cache=5"])
    assert recorded(one.out) == {"config.use_cache": {"was": True, "now": 5}}
    assert "added" not in config_of(one.out)


def test_a_later_correction_in_one_place_replaces_an_earlier_one_in_the_other(world: MakeWorld) -> None:
    one = written(world)
    one.merge(corrections=["config.rope_theta=5"])
    metadata(one.out, corrections=["config.rope_parameters.rope_theta=6"])
    told = {"was": 10000.0, "now": 6.0}
    assert recorded(one.out) == {"config.rope_theta": told, "config.rope_parameters.rope_theta": told}
    assert metadata(one.out).changed == ()
    assert (config_of(one.out)["rope_theta"], config_of(one.out)["rope_parameters"]["rope_theta"]) == (6, 6)


def test_a_later_correction_of_an_object_is_not_undone_by_an_earlier_one_inside_of_it(
    world: MakeWorld,
) -> None:
    one = written(world)
    one.merge(corrections=["config.rope_theta=5"])
    metadata(one.out, corrections=['config.rope_parameters={"rope_theta": 6, "rope_type": "default"}'])
    assert metadata(one.out).changed == ()
    was = {"rope_theta": 10000.0, "rope_type": "default"}
    assert recorded(one.out)["config.rope_parameters"] == {"was": was, "now": was | {"rope_theta": 6.0}}
    assert config_of(one.out)["rope_parameters"]["rope_theta"] == config_of(one.out)["rope_theta"] == 6


def test_a_damaged_report_whose_corrections_are_of_nothing_is_told(world: MakeWorld) -> None:
    one = written(world)
    one.merge()
    path = one.out / ".shardmerge" / "report.json"
    report = json.loads(path.read_bytes())
    report["check"]["corrections"] = {"config": {"was": 1, "now": 2}}
    path.write_text(json.dumps(report))
    found = run("metadata", one.out)
    assert found.exit_code == 4
    assert "no corrections that were recorded" in found.stderr
