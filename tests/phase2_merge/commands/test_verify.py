"""`verify` on what shardmerge wrote, on what it did not write, and on both spoiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common import errors as tree
from shardmerge.common.errors import ProblemsFoundError, ShardmergeError
from shardmerge.phase2_merge import diff, inspect, metadata, verify
from tests.dumps import dumps
from tests.dumps.dumps import Topology, dense_config
from tests.dumps.worlds import MakeWorld

INDEX = "model.safetensors.index.json"


@pytest.fixture
def merged(world: MakeWorld) -> Path:
    one = world(Topology(tp=2)).write()
    one.merge(max_shard_bytes=800)
    return one.out


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two files and an index, written by the safetensors library and by hand."""
    model = dumps.model_of(dense_config(1))
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config | {"torch_dtype": "bfloat16"}))
    halves = [dict(list(model.tensors.items())[:5]), dict(list(model.tensors.items())[5:])]
    for name, half in zip(("a.safetensors", "b.safetensors"), halves, strict=True):
        dumps.save(folder / name, half)
    weight_map = dict.fromkeys(halves[0], "a.safetensors") | dict.fromkeys(halves[1], "b.safetensors")
    total = sum(len(data) for _, _, data in model.tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return folder


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder: Path, kind: type[ShardmergeError], exit_code: int) -> Any:
    with pytest.raises(kind) as error:
        verify(folder)
    assert error.value.exit_code == exit_code
    return error.value


def test_a_merged_checkpoint_is_sound_to_the_byte(merged: Path) -> None:
    report = verify(merged)
    assert report.num_tensors == report.checksums_compared == 25
    assert report.warnings == ()


def test_a_foreign_checkpoint_is_sound_but_has_no_checksums(foreign: Path) -> None:
    report = verify(foreign)
    assert (report.num_shards, report.num_tensors, report.checksums_compared, report.warnings) == (
        2,
        14,
        0,
        (),
    )
    assert "the bytes of 14 tensors (no checksum of them is recorded)" in report.text()
    assert "numbers (--scan)" in report.scope()[1]


def test_a_single_file_needs_no_index(world: MakeWorld) -> None:
    one = world().write(weights=True)
    assert verify(one.reference).num_shards == 1


def test_verify_size_compares_no_byte(merged: Path) -> None:
    assert verify(merged, verify="size").checksums_compared == 0


@pytest.mark.parametrize("number", [1, 2], ids=["adopted", "assembled"])
def test_a_flipped_bit_names_shard_and_tensor(merged: Path, number: int) -> None:
    path = sorted(merged.glob("*.safetensors"))[number - 1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # an adopted shard is the dump's file
    path.write_bytes(data)
    error = refusal(merged, tree.CorruptFileError, 4)
    assert error.path == str(path)
    assert "have checksum" in error.reason


def test_a_truncated_shard(foreign: Path) -> None:
    path = foreign / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    found = refusal(foreign, ProblemsFoundError, 4).problems
    assert found[0].path == str(path)


def test_a_missing_shard(foreign: Path) -> None:
    (foreign / "b.safetensors").unlink()
    found = refusal(foreign, ProblemsFoundError, 4).problems
    assert "missing" in found[0].reason


def test_a_dangling_tensor(foreign: Path) -> None:
    change_index(foreign, lambda index: index["weight_map"].update({"model.ghost": "a.safetensors"}))
    assert refusal(foreign, tree.CorruptIndexError, 4).reason == "model.ghost is not in a.safetensors"


def test_an_unindexed_tensor(foreign: Path) -> None:
    change_index(foreign, lambda index: index["weight_map"].pop("lm_head.weight"))
    assert (
        "holds lm_head.weight, but it does not name it" in refusal(foreign, tree.CorruptIndexError, 4).reason
    )


def test_a_shard_in_a_sub_folder(foreign: Path) -> None:
    (foreign / "sub").mkdir()
    (foreign / "b.safetensors").rename(foreign / "sub" / "b.safetensors")
    moved = "sub/b.safetensors"
    change_index(
        foreign,
        lambda index: index["weight_map"].update(
            {name: moved for name, file in index["weight_map"].items() if file == "b.safetensors"}
        ),
    )
    found = refusal(foreign, ProblemsFoundError, 4).problems
    assert any("sub/b.safetensors is not beside it" in problem.message() for problem in found)


def test_a_wrong_total_size(foreign: Path) -> None:
    change_index(foreign, lambda index: index["metadata"].update(total_size=7))
    assert "total_size is 7" in refusal(foreign, tree.CorruptIndexError, 4).reason


def test_shapes_that_config_contradicts(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_bytes())
    (foreign / "config.json").write_text(json.dumps(config | {"vocab_size": 25}))
    found = refusal(foreign, ProblemsFoundError, 4).problems
    assert {(error.tensor, error.got, error.expected) for error in found} == {
        ("model.embed_tokens.weight", "[24, 8]", "[25, 8]"),
        ("lm_head.weight", "[24, 8]", "[25, 8]"),
    }


def test_a_layer_that_config_requires_and_nobody_holds(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_bytes())
    (foreign / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    found = refusal(foreign, ProblemsFoundError, 3).problems
    assert len(found) == 11
    assert all(error.tensor.startswith("model.layers.1.") for error in found)


def test_a_config_of_a_far_larger_model_is_one_problem(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_bytes())
    (foreign / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10_000}))
    error = refusal(foreign, tree.OtherShapeError, 4)
    assert (error.tensor, error.got, error.expected) == ("config.json", "110,003", "about 14")


def test_tensors_that_config_does_not_know_are_a_warning(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_bytes())
    (foreign / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert verify(foreign).warnings == ("Qwen3ForCausalLM with this config.json has no lm_head.weight",)


def test_an_unknown_architecture_is_a_warning(foreign: Path) -> None:
    (foreign / "config.json").write_text('{"architectures": ["MysteryForCausalLM"]}')
    assert "No table for architecture MysteryForCausalLM" in verify(foreign).warnings[0]


def test_a_dtype_that_config_contradicts_is_a_warning(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_bytes())
    (foreign / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    assert verify(foreign).warnings == ("config.json says float32, most bytes are bfloat16",)


def test_a_stray_file_is_a_warning(foreign: Path) -> None:
    dumps.save(foreign / "consolidated.safetensors", {"w": ("U8", (1,), b"x")})
    assert verify(foreign).warnings == (
        "consolidated.safetensors is not part of the checkpoint; some readers load it all the same",
    )


def test_a_directory_without_weights(world: MakeWorld) -> None:
    one = world().write()
    assert "holds neither" in refusal(one.reference, tree.BadInputError, 2).what


def test_a_directory_without_config(tmp_path: Path) -> None:
    refusal(tmp_path, tree.MissingConfigError, 2)


def test_a_checkpoint_without_config_is_told_about_no_option_of_other_commands(foreign: Path) -> None:
    (foreign / "config.json").unlink()
    for command in (verify, inspect):
        with pytest.raises(tree.MissingConfigError) as error:
            command(foreign)
        assert error.value.message() == f"{foreign} holds no config.json. Copy or download it again."


def test_an_index_that_is_none(foreign: Path) -> None:
    (foreign / INDEX).write_text('{"weight_map": ["a.safetensors"]}')
    assert "no weight_map" in refusal(foreign, tree.CorruptFileError, 4).reason


@pytest.mark.parametrize("file", ["../a.safetensors", "/a.safetensors", "", ".", "a\0b", "x" * 300, "a//b"])
def test_an_index_that_names_no_file_of_its_folder(foreign: Path, file: str) -> None:
    change_index(foreign, lambda index: index["weight_map"].update({"lm_head.weight": file}))
    error = refusal(foreign, tree.CorruptFileError, 4)
    assert (error.path, "is not the name of a file" in error.reason) == (str(foreign / INDEX), True)


def test_records_that_were_damaged(merged: Path) -> None:
    (merged / ".shardmerge" / "ledger.parquet").write_bytes(b"PAR1")
    assert refusal(merged, tree.CorruptFileError, 4).path.endswith("ledger.parquet")


@pytest.mark.parametrize("name", ["ledger.parquet", "plan.json", "report.json"])
@pytest.mark.parametrize("command", [verify, metadata])
def test_whoever_has_a_damaged_record_is_not_told_to_dump_again(
    merged: Path, name: str, command: Callable[..., object]
) -> None:
    (merged / ".shardmerge" / name).write_bytes(b"[")
    with pytest.raises(tree.CorruptFileError) as error:
        command(merged)
    assert error.value.do == "Copy the output again, with its folder .shardmerge, or merge again."


@pytest.mark.parametrize(
    "command", [verify, inspect, lambda out: diff(out, out)], ids=["verify", "inspect", "diff"]
)
def test_an_output_that_lost_its_index_is_told_what_writes_it_again(
    merged: Path, command: Callable[..., object]
) -> None:
    index = (merged / INDEX).read_bytes()
    (merged / INDEX).unlink()
    with pytest.raises(tree.MissingRecordError) as error:
        command(merged)
    assert error.value.path == str(merged / INDEX)
    assert f"`shardmerge metadata {merged}` writes it again" in error.value.message()
    assert metadata(merged).changed == (INDEX,)
    assert (merged / INDEX).read_bytes() == index


def test_shards_without_records_are_not_told_of_metadata(foreign: Path) -> None:
    (foreign / INDEX).unlink()
    assert "holds neither" in refusal(foreign, tree.BadInputError, 2).what
