"""One fault a test: surroundings, generations, manifests, fragments. The error, its exit code, what it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common import errors as tree
from shardmerge.phase2_merge import check
from tests.dumps.dumps import Topology, dense_config, facts_of
from tests.dumps.refusals import edit, problems, refusal
from tests.dumps.worlds import MakeWorld

# ---- surroundings ---------------------------------------------------------------------------------------------


def test_a_reference_without_config(world: MakeWorld) -> None:
    one = world().write()
    (one.reference / "config.json").unlink()
    assert refusal(one, tree.MissingConfigError, 2).path == str(one.reference)


def test_a_config_that_is_not_json(world: MakeWorld) -> None:
    one = world().write()
    (one.reference / "config.json").write_text("{")
    assert "is not valid JSON" in refusal(one, tree.BadInputError, 2).what


def test_an_architecture_without_a_table(world: MakeWorld) -> None:
    one = world(config=dense_config(architectures=["MysteryForCausalLM"])).write()
    error = refusal(one, tree.UnsupportedArchitectureError, 5)
    assert error.architecture == "MysteryForCausalLM"
    assert "Qwen3MoeForCausalLM" in error.supported


def test_a_dump_that_is_no_directory(world: MakeWorld) -> None:
    one = world().write()
    shutil.rmtree(one.dump)
    assert "does not exist" in refusal(one, tree.BadInputError, 2).what
    one.dump.write_text("")
    assert "is not a directory" in refusal(one, tree.BadInputError, 2).what


def test_a_dump_without_any_manifest_names_a_recorded_failure(world: MakeWorld) -> None:
    one = world().write()
    shutil.rmtree(one.rank(0))
    (one.dump / "rank-00000.failed.json").write_text('{"failure": {"message": "out of disk"}}')
    assert "rank 0 recorded a failure: out of disk" in refusal(one, tree.BadInputError, 2).what


# ---- generations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("run_id", "run-2", "run-2"), ("step", 101, "101"), ("attempt", "1", "1"), ("world_size", 4, "4")],
)
def test_two_generations_are_named_with_their_ranks(
    world: MakeWorld, field: str, value: Any, shown: str
) -> None:
    one = world(Topology(tp=2)).write()
    edit(one.rank(1) / "manifest.json", **{field: value})
    error = refusal(one, tree.MixedGenerationsError, 4)
    assert error.field == field
    assert error.values[shown] == (1,)
    assert sorted(error.values.values()) == [(0,), (1,)]


def test_two_sets_of_facts_name_the_fact(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    edit(one.rank(1) / "manifest.json", facts=facts_of(one.model.config) | {"dtype": "F32"})
    error = refusal(one, tree.MixedGenerationsError, 4)
    assert (error.field, error.values) == ("facts.dtype", {"BF16": (0,), "F32": (1,)})


def test_another_architecture_than_the_references(world: MakeWorld) -> None:
    one = world().write(architecture="LlamaForCausalLM")
    error = refusal(one, tree.MismatchError, 4)
    assert (error.tensor, error.what, error.got) == ("config.json", "architecture", "Qwen3ForCausalLM")


def test_other_dimensions_than_the_references_are_one_message_not_a_thousand(world: MakeWorld) -> None:
    told = facts_of(dense_config())
    one = world().write(facts=told | {"dimensions": told["dimensions"] | {"vocab": 23}})
    error = refusal(one, tree.MismatchError, 4)
    assert (error.what, error.got, error.expected) == ("vocab", "24", "23, as dumped")


def test_a_rank_twice_with_different_manifests(world: MakeWorld, tmp_path: Path) -> None:
    one = world().write()
    other = tmp_path / "other"
    shutil.copytree(one.dump, other)
    edit(other / "rank-00000" / "manifest.json", step=7)
    with pytest.raises(tree.DuplicateRankError) as error:
        check([one.dump, other], hf_reference=one.reference)
    assert (error.value.rank, error.value.exit_code) == (0, 4)


def test_a_quantized_dump_is_refused_by_name(world: MakeWorld) -> None:
    told = {
        "excluded": [],
        "kv_cache": {},
        "scalars": {"names": [], "values": []},
        "uncalibrated": [],
        "producer": {},
    }
    one = world().write(quantization={"layers": {"INT4": []}} | told)
    error = refusal(one, tree.UnsupportedQuantizationError, 5)
    assert (error.formats, error.ranks) == ("INT4", (0,))


# ---- manifests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"not json", "Expecting value"),
        (lambda data: b"[]", "is not a shardmerge manifest"),
        (lambda data: data.replace(b'"rank":0', b'"rank":0,"rank":0'), "'rank' occurs twice"),
        (lambda data: data.replace(b"run-1", b"run-2"), "digest does not fit"),
        (lambda data: data[:-40], ""),
        (lambda data: data.replace(b'"schema_version":1', b'"schema_version":9'), "schema_version 9"),
        (lambda data: b"[" * 100_000, "nested too deeply"),
    ],
    ids=["text", "array", "duplicate keys", "edited", "truncated", "newer", "deep"],
)
def test_a_manifest_that_is_none(world: MakeWorld, spoil: Any, reason: str) -> None:
    one = world().write()
    path = one.rank(0) / "manifest.json"
    path.write_bytes(spoil(path.read_bytes()))
    error = refusal(one, tree.CorruptManifestError, 4)
    assert error.path == str(path)
    assert reason in error.reason


def test_a_manifest_in_another_ranks_directory(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    one.rank(0).rename(one.dump / "swap")
    one.rank(1).rename(one.rank(0))
    (one.dump / "swap").rename(one.rank(1))
    assert "it is of rank 1, but lies in rank-00000" in refusal(one, tree.CorruptManifestError, 4).reason


def test_columns_that_contradict_themselves(world: MakeWorld) -> None:
    one = world().write()
    path = one.rank(0) / "manifest.json"
    columns = json.loads(path.read_bytes())["columns"]
    columns["global_shape"][1][columns["ndim"].index(1)] = 5
    edit(path, columns=columns)
    assert (
        "column global_shape gives rectangles a dimension that they lack"
        in refusal(one, tree.CorruptManifestError, 4).reason
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dtypes": ["BF17"]},
        {"health": {"all_zero": [10**6]}},
        {"health": {"nonfinite": [[1]]}},
        {"groups": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_fields_that_cannot_be(world: MakeWorld, changes: dict[str, Any]) -> None:
    one = world().write()
    edit(one.rank(0) / "manifest.json", **changes)
    refusal(one, tree.CorruptManifestError, 4)


# ---- fragments ------------------------------------------------------------------------------------------------


def test_a_truncated_fragment(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "split-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    error = refusal(one, tree.CorruptFileError, 4)
    assert (error.path, error.rank) == (str(path), 1)


def test_a_fragment_longer_than_its_header_says(world: MakeWorld) -> None:
    one = world().write()
    path = one.rank(0) / "whole-00001.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert refusal(one, tree.CorruptFileError, 4).path == str(path)


def test_a_missing_fragment(world: MakeWorld) -> None:
    one = world().write()
    (one.rank(0) / "whole-00001.safetensors").unlink()
    assert "missing" in refusal(one, tree.CorruptFileError, 4).reason


def test_one_flipped_bit_in_data_names_the_tensor(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "split-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(tree.CorruptFileError) as error:
        one.merge()
    assert (error.value.path, error.value.rank) == (str(path), 1)
    with pytest.raises(tree.CorruptFileError) as error:
        one.check()
    assert (error.value.path, error.value.rank) == (str(path), 1)
    assert not one.out.exists()


def test_one_flipped_bit_in_a_header(world: MakeWorld) -> None:
    one = world().write()
    path = one.rank(0) / "whole-00001.safetensors"
    data = bytearray(path.read_bytes())
    at = data.index(b'"BF16"')
    data[at + 1 : at + 5] = b"F16 "
    path.write_bytes(data)
    assert "header is not the one" in refusal(one, tree.CorruptFileError, 4).reason


def test_a_header_that_the_manifest_does_not_describe(world: MakeWorld) -> None:
    """Two tensors of one size have changed places in the manifest; all checksums fit."""
    one = world().write()
    path = one.rank(0) / "manifest.json"
    columns = json.loads(path.read_bytes())["columns"]
    names = json.loads(path.read_bytes())["names"]
    first, second = (
        columns["name"].index(names.index(f"model.layers.0.{norm}_layernorm.weight"))
        for norm in ("input", "post_attention")
    )
    columns["name"][first], columns["name"][second] = columns["name"][second], columns["name"][first]
    edit(path, columns=columns)
    assert "its header has" in refusal(one, tree.CorruptFileError, 4).reason


@pytest.mark.parametrize("name", ["whole", "split"])
def test_a_manifest_that_leaves_a_hole_in_a_fragment(world: MakeWorld, name: str) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(0) / "manifest.json"
    value = json.loads(path.read_bytes())
    columns = value["columns"]
    row = columns["file"].index([file["name"] for file in value["files"]].index(f"{name}-00001.safetensors"))
    columns["begin"][row] += 2
    columns["end"][row] += 2
    edit(path, columns=columns)
    error = refusal(one, tree.CorruptFileError, 4)
    assert error.path == str(one.rank(0) / f"{name}-00001.safetensors")
    assert "nothing or twice" in error.reason


def test_fragments_swapped_between_two_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    first, second = (one.rank(rank) / "split-00001.safetensors" for rank in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    found = problems(one, 4)
    assert [error.rank for error in found if isinstance(error, tree.CorruptFileError)] == [0, 1]
