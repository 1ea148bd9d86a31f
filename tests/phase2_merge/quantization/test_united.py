"""Quantized dumps that lie, lack something or were calibrated badly; and the two JSON files of those that do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.command.group import main
from shardmerge.common.errors import (
    BadInputError,
    BadScaleError,
    MismatchError,
    MissingTensorError,
    ProblemsFoundError,
    QuantizationMismatchError,
    ScalarMismatchError,
    ShardmergeError,
    UncalibratedError,
    UnexpectedTensorError,
)
from shardmerge.phase2_merge import check, merge, metadata
from tests.dumps.quantized_dumps import (
    Edit,
    dump_quantized,
    edit_manifests,
    moved,
    with_facts,
    with_scalar,
    without,
)
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.quantizing import QWEN3_MOE, range_of
from tests.worlds.topology import Topology

WORLD = Topology(tp=2, pp=2, etp=2)
SPREAD = Topology(ep=2, dp=2)
SCALE = "model.layers.1.mlp.experts.3.up_proj.weight_scale"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and tokenizer of the model, with what a quantized source would leave behind; no weights."""
    folder = tmp_path_factory.mktemp("quantized") / "reference"
    full = write_hf_checkpoint(QWEN3_MOE, folder.with_name("full"))
    shutil.copytree(full, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    config["compression_config"] = {"quant_method": "compressed-tensors"}  # vLLM's, where the other is absent
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "INT4_AWQ"}}')
    return folder


@pytest.fixture(scope="module")
def sound(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of four ranks in NVFP4 with nothing wrong."""
    out = tmp_path_factory.mktemp("sound") / "dump"
    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", out, reference)
    return out


@pytest.fixture
def edited(sound: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """The sound dump with every manifest edited."""

    def edit(change: Edit) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(sound, copy)
        edit_manifests(copy, change)
        return copy

    return edit


def problems(dump: Path, reference: Path) -> list[ShardmergeError]:
    """Everything that check finds."""
    with pytest.raises(ShardmergeError) as error:
        check([dump], hf_reference=reference)
    found = error.value
    return list(found.problems) if isinstance(found, ProblemsFoundError) else [found]


def of_kind(kind: type[Any], found: list[ShardmergeError]) -> list[Any]:
    return [one for one in found if isinstance(one, kind)]


def json_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """hf_quant_config.json's statements and config.json."""
    statements = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
    return statements, json.loads((path / "config.json").read_text())


# ---- sabotage -------------------------------------------------------------------------------------------------


def test_one_missing_expert_scale_is_named(edited: Callable[[Edit], Path], reference: Path) -> None:
    found = of_kind(MissingTensorError, problems(edited(without(SCALE)), reference))
    assert [(one.tensor, one.shape) for one in found] == [(SCALE, (64, 6))]


def test_a_missing_scalar_is_named(edited: Callable[[Edit], Path], reference: Path) -> None:
    name = SCALE.replace("weight_scale", "input_scale")
    found = of_kind(MissingTensorError, problems(edited(without(name)), reference))
    assert [(one.tensor, one.shape) for one in found] == [(name, ())]


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_scalar_that_is_not_positive_is_named(
    value: float, edited: Callable[[Edit], Path], reference: Path
) -> None:
    (found,) = problems(edited(with_scalar(f"{SCALE}_2", value)), reference)
    assert isinstance(found, BadScaleError)
    assert (found.tensor, found.value, found.ranks) == (f"{SCALE}_2", str(value), (0, 1))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_a_weight_range_that_is_none_stops_the_dump(value: float, reference: Path, tmp_path: Path) -> None:
    def spoil(rank: int, model: GPTModel) -> None:
        expert = model.decoder.layers[1].mlp.experts.local_experts[3]
        expert.linear_fc1.weight_quantizer._amax.fill_(value)

    with pytest.raises(
        BadScaleError, match=r"local_experts\.3\.linear_fc1\.weight: weight_quantizer\.amax is"
    ):
        dump_quantized(QWEN3_MOE, SPREAD, "NVFP4", tmp_path / "dump", reference, spoil=spoil)
    assert not list((tmp_path / "dump").glob("rank-*/*"))


def test_a_scalar_that_differs_on_one_tensor_parallel_rank_names_ranks_and_values(
    reference: Path, tmp_path: Path
) -> None:
    """modelopt only warns when its synchronisation fails."""

    def spoil(rank: int, model: GPTModel) -> None:
        if rank == 3:  # the second tensor-parallel rank of the second stage: layers 2 and 3
            model.decoder.layers[0].self_attention.linear_qkv.weight_quantizer._amax.mul_(2)

    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", tmp_path / "dump", reference, spoil=spoil)
    found = of_kind(ScalarMismatchError, problems(tmp_path / "dump", reference))
    identity = "decoder.layers.2.self_attention.linear_qkv.weight_quantizer"
    own = (
        float(range_of(identity).bfloat16()) / 2688
    )  # modelopt keeps ranges of weights in the weight's dtype
    assert [one.tensor for one in found] == [
        f"model.layers.2.self_attn.{name}_proj.weight_scale_2" for name in "kqv"
    ]
    for one in found:
        assert {ranks: float(value) for value, ranks in one.values.items()} == {
            (2,): pytest.approx(own, rel=1e-6),
            (3,): pytest.approx(2 * own, rel=1e-6),
        }


def test_formats_that_differ_between_ranks_are_named(reference: Path, tmp_path: Path) -> None:
    recipes = ["NVFP4", "FP8", "NVFP4", "NVFP4"]
    dump_quantized(QWEN3_MOE, WORLD, "", tmp_path / "dump", reference, recipe_of_rank=recipes.__getitem__)
    found = of_kind(QuantizationMismatchError, problems(tmp_path / "dump", reference))
    assert {"NVFP4": (0,), "FP8": (1,)} in [one.values for one in found]
    assert "model.layers.0.self_attn.q_proj" in [one.module for one in found]
    assert not any(one.module.startswith("model.layers.2.") for one in found)


def test_a_weight_that_one_rank_left_unquantized_is_named(reference: Path, tmp_path: Path) -> None:
    def spoil(rank: int, model: GPTModel) -> None:
        if rank == 1:
            model.decoder.layers[0].self_attention.linear_proj.weight_quantizer.disable()

    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", tmp_path / "dump", reference, spoil=spoil)
    found = of_kind(QuantizationMismatchError, problems(tmp_path / "dump", reference))
    assert [(one.module, one.values) for one in found] == [
        ("model.layers.0.self_attn.o_proj", {"NVFP4": (0,), "not quantized": (1,)})
    ]


def test_an_excluded_module_that_has_scales(edited: Callable[[Edit], Path], reference: Path) -> None:
    module = "model.layers.1.mlp.experts.3.up_proj"
    found = problems(edited(moved(module, "excluded")), reference)
    assert {one.tensor for one in of_kind(UnexpectedTensorError, found)} == {
        f"{module}.{suffix}" for suffix in ("weight_scale", "weight_scale_2", "input_scale")
    }
    assert f"{module}.weight" in [one.tensor for one in of_kind(MismatchError, found)]


def test_a_quantized_module_without_scales(edited: Callable[[Edit], Path], reference: Path) -> None:
    module = "model.layers.0.mlp.gate"
    found = problems(edited(moved(module, "NVFP4")), reference)
    assert {one.tensor for one in of_kind(MissingTensorError, found)} == {
        f"{module}.{suffix}" for suffix in ("weight_scale", "weight_scale_2", "input_scale")
    }


def test_scales_that_are_none_are_counted(edited: Callable[[Edit], Path], reference: Path) -> None:
    def change(told: dict[str, Any], rank: int) -> None:
        if rank == 1:
            told["bad_scales"] = {f"{SCALE}@32,0": 7}

    (found,) = problems(edited(with_facts(change)), reference)
    assert isinstance(found, BadScaleError)
    assert (found.tensor, found.ranks) == (f"{SCALE}@32,0", (1,))
    assert "zero, negative or not finite in 7 elements" in found.message()


# ---- ranges that calibration never saw ------------------------------------------------------------------------


def never_seen(rank: int, model: GPTModel) -> None:
    """Expert 5, the second of rank 1, was never routed to in layer 2; its range is zero in layer 3."""
    if rank == 1:
        del model.decoder.layers[2].mlp.experts.local_experts[1].linear_fc2.input_quantizer._amax
        model.decoder.layers[3].mlp.experts.local_experts[1].linear_fc1.input_quantizer._amax.zero_()


NEVER_SEEN = {
    "model.layers.2.mlp.experts.5.down_proj.input_scale": ("2", "linear_fc2"),
    "model.layers.3.mlp.experts.5.gate_proj.input_scale": ("3", "linear_fc1"),
    "model.layers.3.mlp.experts.5.up_proj.input_scale": ("3", "linear_fc1"),
}


@pytest.fixture(scope="module")
def uncalibrated(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uncalibrated") / "dump"
    dump_quantized(QWEN3_MOE, SPREAD, "NVFP4", out, reference, spoil=never_seen)
    return out


def test_experts_that_were_never_calibrated_are_listed_by_layer(uncalibrated: Path, reference: Path) -> None:
    (found,) = of_kind(UncalibratedError, problems(uncalibrated, reference))
    assert set(found.tensors) == set(NEVER_SEEN)
    assert set(found.where) == {
        "down_proj.input_scale of expert 5 of layer 2",
        "gate_proj.input_scale of expert 5 of layer 3",
        "up_proj.input_scale of expert 5 of layer 3",
    }


def test_layer_max_gives_them_the_largest_of_their_layer_and_says_so(
    uncalibrated: Path, reference: Path, tmp_path: Path
) -> None:
    report = merge(
        [uncalibrated], tmp_path / "out", hf_reference=reference, workers=1, uncalibrated="layer-max"
    )
    found = read_hf_tensors(tmp_path / "out")
    for name, (layer, linear) in NEVER_SEEN.items():
        ranges = [
            range_of(f"decoder.layers.{layer}.mlp.experts.{expert}.{linear}.input_quantizer")
            for expert in range(8)
            if expert != 5
        ]
        assert torch.equal(found[name], (torch.stack(ranges).max() / 6 / 448).float()), name
    warnings = json.loads((tmp_path / "out" / ".shardmerge" / "report.json").read_text())["check"]["warnings"]
    assert warnings == list(report.check.warnings)
    assert (
        "down_proj.input_scale of expert 5 of layer 2: the largest of the layer, never calibrated itself"
        in warnings
    )
    assert "never calibrated" in report.text()


# ---- the JSON files -------------------------------------------------------------------------------------------


def test_both_files_say_the_same_and_nothing_stale_is_left(
    sound: Path, reference: Path, tmp_path: Path
) -> None:
    merge([sound], tmp_path / "out", hf_reference=reference, workers=1)
    told, config = json_of(tmp_path / "out")
    four_bits = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    exclude = ["lm_head", "model.embed_tokens", *(f"model.layers.{layer}.mlp.gate" for layer in range(4))]
    assert told == {
        "quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": exclude,
    }  # fmt: skip
    group = {"input_activations": four_bits, "weights": four_bits, "targets": ["Linear"]}
    assert config["quantization_config"] == {
        "config_groups": {"group_0": group}, "ignore": exclude, "quant_algo": "NVFP4", "quant_method": "modelopt",
        "producer": {"name": "modelopt", "version": "0.47.0"},
    }  # fmt: skip
    assert (config["torch_dtype"], config["dtype"]) == ("bfloat16", "bfloat16")


def test_a_stale_quantization_config_goes_also_from_a_plain_checkpoint(
    reference: Path, tmp_path: Path
) -> None:
    dump_quantized(QWEN3_MOE, SPREAD, "none", tmp_path / "dump", reference)
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "compression_config"} & config.keys()
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


@pytest.mark.parametrize("quantized_stage", [0, 1])
def test_one_quantized_stage_is_enough_for_both_files(
    quantized_stage: int, reference: Path, tmp_path: Path
) -> None:
    stages = ["none", "none"]
    stages[quantized_stage] = "FP8"
    dump_quantized(
        QWEN3_MOE, Topology(pp=2), "", tmp_path / "dump", reference, recipe_of_rank=stages.__getitem__
    )
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    told, config = json_of(tmp_path / "out")
    layers = {name.split(".")[2] for name in told["exclude_modules"] if name.endswith("q_proj")}
    assert layers == ({"2", "3"} if quantized_stage == 0 else {"0", "1"})
    assert told["quant_algo"] == config["quantization_config"]["quant_algo"] == "FP8"
    assert len([name for name in told["exclude_modules"] if ".experts." in name]) == 2 * 8 * 3


def test_a_mixture_lists_every_global_expert(reference: Path, tmp_path: Path) -> None:
    dump_quantized(QWEN3_MOE, SPREAD, "MIXED", tmp_path / "dump", reference)
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    told, config = json_of(tmp_path / "out")
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj"
        for layer in range(4) for expert in range(8) for name in ("gate", "up", "down")
    }  # fmt: skip
    attention = {f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(4) for name in "qkvo"}
    assert told["quant_algo"] == "MIXED_PRECISION"
    four_bits, eight_bits = {"quant_algo": "NVFP4", "group_size": 16}, {"quant_algo": "FP8"}
    expected = dict.fromkeys(experts, four_bits) | dict.fromkeys(attention, eight_bits)
    assert told["quantized_layers"] == config["quantization_config"]["quantized_layers"] == expected
    groups = config["quantization_config"]["config_groups"]
    assert {tuple(group["targets"]) for group in groups.values()} == {
        tuple(sorted(experts)), tuple(sorted(attention)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("correction", "what"),
    [
        ("quant_algo=INT3", "says INT3"),
        ("quant_algo=FP8_BLOCK", "says FP8_BLOCK"),  # which hf_quant_config.json has no word for
        ("quant_algo=MIXED_PRECISION", "MIXED_PRECISION without quantized_layers"),
        ("exclude_modules=lm_head", "exclude_modules=lm_head: it is not JSON"),
        ("quant_algo=3", "quant_algo=3: 3 is a number"),
    ],
)
def test_a_correction_that_no_reader_would_understand_is_refused(
    correction: str, what: str, sound: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge([sound], out, hf_reference=reference, workers=1)
    before = json_of(out)
    with pytest.raises(BadInputError) as error:
        metadata(out, corrections=[f"quantization.{correction}"])
    assert (error.value.exit_code, what in error.value.what) == (2, True)
    assert json_of(out) == before


def test_metadata_sets_the_kv_cache_and_adds_an_excluded_module_without_touching_a_shard(
    sound: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge([sound], out, hf_reference=reference, workers=1)
    before = {path.name: untouched(path) for path in out.glob("*.safetensors")}
    was, _ = json_of(out)
    arguments = ["metadata", str(out), "--set", "quantization.kv_cache_quant_algo=FP8"]
    arguments += ["--set", "quantization.exclude_modules+=model.layers.4.eh_proj"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told, config = json_of(out)
    exclude = [*was["exclude_modules"], "model.layers.4.eh_proj"]
    assert told == was | {"kv_cache_quant_algo": "FP8", "exclude_modules": exclude}
    declared = config["quantization_config"]
    assert declared["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert declared["ignore"] == exclude
    assert len(before) > 1
    assert {path.name: untouched(path) for path in out.glob("*.safetensors")} == before


def untouched(path: Path) -> tuple[int, int, int, bytes]:
    """Inode, time of the last change, size and bytes."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size, path.read_bytes()
