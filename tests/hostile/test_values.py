"""Values that no program would write, under digests that fit: errors of the tree, whatever a manifest holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.dumps import dumps
from tests.dumps.refusals import edit
from tests.dumps.worlds import MakeWorld
from tests.hostile.running import check, edit_manifest, manifest, run, written


def first_file(**changes: Any) -> Any:
    def change(value: dict[str, Any]) -> dict[str, Any]:
        return {"files": [value["files"][0] | changes, *value["files"][1:]]}

    return change


def fact(name: str, value: Any) -> Any:
    return lambda told: {"facts": told["facts"] | {name: value}}


MANIFESTS = {
    "a NUL in the name of a file": first_file(name="whole\0.safetensors"),
    "a name of 300 characters": first_file(name="w" * 300),
    "a name that is a number": first_file(name=5),
    "header_bytes of 2^70": first_file(header_bytes=1 << 70),
    "num_bytes of 2^70": first_file(num_bytes=1 << 70),
    "a negative size": first_file(num_bytes=-1),
    "a checksum that is a list": first_file(header_xxh3_128=[]),
    "dimensions that are a list": fact("dimensions", [1, 2]),
    "a dimension of 2^70": fact("dimensions", {"hidden": 1 << 70}),
    "a dimension that is a list": fact("dimensions", {"hidden": [8]}),
    "a negative rank": lambda _: {"rank": -1},
    "a huge rank": lambda _: {"rank": 1 << 70},
    "a huge world": lambda _: {"world_size": 1 << 70},
    "no world": lambda _: {"world_size": 0},
    "a group of ranks that are not there": lambda _: {"groups": {"tp": [0, 1 << 70]}},
    "a group of negative ranks": lambda _: {"groups": {"tp": [-1]}},
    "a huge coordinate": lambda _: {"coordinates": {"tp": 1 << 70}},
    "a negative coordinate": lambda _: {"coordinates": {"tp": -1}},
    "a step of 2^70": lambda _: {"step": 1 << 70},
    "drops of 2^70": lambda _: {"drops": {"x": 1 << 70}},
    "health of row 2^70": lambda _: {"health": {"all_zero": [1 << 70]}},
    "counts of 2^70": lambda _: {"health": {"nonfinite": [[0, 1 << 70, 0]]}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_with_a_value_that_cannot_be_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world)
    edit_manifest(one, MANIFESTS[name](manifest(one)))
    assert "is not a manifest" in check(one, codes=(4,)).stderr
    run("inspect", one.dump, codes=(4,))


@pytest.mark.parametrize(
    "name", ["begin", "end", "owner", "global_shape", "local_shape", "global_offset", "ndim"]
)
@pytest.mark.parametrize("value", [-5, 1 << 62, 1 << 70])
def test_a_column_with_a_number_that_cannot_be_is_refused(world: MakeWorld, name: str, value: int) -> None:
    one = written(world)
    columns = manifest(one)["columns"]
    (columns[name][0] if isinstance(columns[name][0], list) else columns[name])[0] = value
    edit_manifest(one, {"columns": columns})
    assert "is not a manifest" in check(one, codes=(4,)).stderr


def test_a_million_ranks_of_which_one_is_there_are_one_problem(world: MakeWorld) -> None:
    one = world().write()
    edit_manifest(one, {"world_size": 1_000_000})
    assert "999,999 of 1,000,000 ranks have no manifest" in check(one, codes=(3,)).stderr


def test_a_model_of_many_more_tensors_than_the_dump_has_is_one_problem(world: MakeWorld) -> None:
    one = written(world)
    config = json.loads((one.reference / "config.json").read_bytes()) | {"num_experts": 100_000}
    (one.reference / "config.json").write_text(json.dumps(config))
    for rank in range(4):
        edit(one.rank(rank) / "manifest.json", facts=dumps.facts_of(config))
    assert "the number of tensors it describes is 600,021, expected about 45" in check(one, codes=(4,)).stderr


def test_a_rank_directory_with_a_huge_number_is_not_a_rank(world: MakeWorld) -> None:
    one = written(world)
    for name in ("rank-99999999999999999999", f"rank-{'9' * 200}", ".rank-99999999999999999999.partial"):
        (one.dump / name).mkdir()
    check(one, codes=(0,))
    assert "4 of 4 done." in run("inspect", one.dump, codes=(0,)).output


@pytest.mark.parametrize("number", ["1000000000000", "9" * 5000, "999999"])
def test_a_layer_with_a_huge_number_makes_no_map_of_it(world: MakeWorld, number: str) -> None:
    one = written(world)
    names = manifest(one)["names"]
    names[0] = f"model.layers.{number}.mlp.experts.{number}.up_proj.weight"
    edit_manifest(one, {"names": names})
    assert run("inspect", one.dump, codes=(0,)).output.count("\n") < 30
    check(one, codes=(3, 4))


def test_experts_with_huge_numbers_in_each_layer_make_no_map_of_them(world: MakeWorld) -> None:
    one = written(world)
    folder = one.folder / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"model.layers.{layer}.mlp.experts.999999.w" for layer in range(1000)]
    dumps.save(folder / "model.safetensors", dict.fromkeys(names, ("U8", (1,), b"x")))
    assert (
        "no map is drawn: tensors are named by layers up to 999" in run("inspect", folder, codes=(0,)).output
    )


CONFIGS = {
    "a text where a number is multiplied": {"num_attention_heads": "a", "head_dim": 10**12},
    "layers without end": {"num_hidden_layers": 10**15},
    "experts without end": {"num_experts": 10**12},
    "a list of heads": {"num_attention_heads": [1], "head_dim": 10**10},
    "a negative dimension": {"hidden_size": -8},
    "half a character": {"x": "\ud800"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world)
    config = json.loads((one.reference / "config.json").read_bytes()) | CONFIGS[name]
    (one.reference / "config.json").write_text(json.dumps(config))
    check(one, codes=(2,))


def test_json_that_is_deep_or_long_is_refused(world: MakeWorld) -> None:
    one = written(world)
    for text in (
        "[" * 10**6,
        '{"a":' * 10**5,
        "1" * 10**6,
        '{"a": ' + "9" * 5000 + "}",
        '"\\ud800',
        "\0",
        "",
    ):
        (one.reference / "config.json").write_text(text)
        assert "is not valid JSON" in check(one, codes=(2,)).stderr
