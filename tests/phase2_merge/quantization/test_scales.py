"""`verify` on quantized directories: what both JSON files declare, against each other and against the tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.errors import (
    CorruptFileError,
    DeclarationMismatchError,
    MissingConfigError,
    MissingScaleError,
    ProblemsFoundError,
    ShardmergeError,
    StoredOtherwiseError,
    UndeclaredScaleError,
)
from shardmerge.phase2_merge import merge, metadata, verify
from tests.dumps.quantized_dumps import dump_quantized
from tests.dumps.quantized_outputs import Tensors, bare_copy, change_declared, change_hf, exclude
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, RECIPES
from tests.worlds.topology import Topology

EXPERT = "model.layers.1.mlp.experts.3.up_proj"  # [64, 96], in NVFP4 [64, 48] bytes and [64, 6] scales
ROUTER = "model.layers.1.mlp.gate"
ATTENTION = "model.layers.2.self_attn"
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What a model merged to that modelopt quantized by a recipe, each made once."""
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            folder = tmp_path_factory.mktemp(recipe)
            family = QWEN3_MOE_IN_BLOCKS if recipe == "FP8_BLOCK" else QWEN3_MOE
            full = write_hf_checkpoint(family, folder / "full")
            (folder / "reference").mkdir()
            shutil.copy(full / "config.json", folder / "reference")
            dump_quantized(family, Topology(pp=2), recipe, folder / "dump", folder / "reference")
            merge([folder / "dump"], folder / "out", hf_reference=folder / "reference", workers=1)
            made[recipe] = folder / "out"
        return made[recipe]

    return make


@pytest.fixture
def spoiled(merged: Made, tmp_path: Path) -> Callable[..., Path]:
    """A bare copy of the NVFP4 checkpoint, or of another recipe, its tensors changed."""

    def spoil(change: Callable[[Tensors], object] = lambda tensors: None, recipe: str = "NVFP4") -> Path:
        return bare_copy(merged(recipe), tmp_path / "spoiled", change)

    return spoil


def refused(folder: Path) -> list[Any]:
    with pytest.raises(ShardmergeError) as error:
        verify(folder)
    found = error.value
    return list(found.problems) if isinstance(found, ProblemsFoundError) else [found]


def plain(tensors: Tensors, module: str, *shape: int) -> None:
    """The module was not quantized after all: its weight in bf16, no scales."""
    for name in [name for name in tensors if name.startswith(f"{module}.")]:
        del tensors[name]
    tensors[f"{module}.weight"] = torch.ones(shape, dtype=torch.bfloat16)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_was_merged_is_sound_with_its_records_and_without(
    recipe: str, merged: Made, spoiled: Callable[..., Path]
) -> None:
    assert verify(merged(recipe)).warnings == ()
    assert verify(spoiled(recipe=recipe)).warnings == ()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_lost_config_declares_again_what_the_other_file_does(
    recipe: str, merged: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(merged(recipe), out)
    whole, reference = (out / "config.json").read_bytes(), merged(recipe).parent / "reference"
    (out / "config.json").unlink()
    if (out / "hf_quant_config.json").exists():
        assert metadata(out, hf_reference=reference).changed == ("config.json",)
        assert json.loads((out / "config.json").read_bytes()) == json.loads(whole)
    else:  # nothing else says what it declared
        with pytest.raises(MissingConfigError, match="it alone declared the quantization"):
            metadata(out, hf_reference=reference)


def test_a_corrected_quantization_outlives_edits_and_a_merge_again(merged: Made, tmp_path: Path) -> None:
    out, made = tmp_path / "out", merged("NVFP4").parent
    shutil.copytree(made / "out", out)
    metadata(out, corrections=['quantization.exclude_modules+=["model.extra"]'])
    told = (out / "hf_quant_config.json").read_bytes()
    path = out / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_bytes()) | {"dtype": "float16", "torch_dtype": "float16"})
    )
    assert metadata(out).dropped == {}
    assert json.loads(path.read_bytes())["dtype"] == "float16"
    again = merge([made / "dump"], out, hf_reference=made / "reference", workers=1)
    assert again.kept_corrections == ("quantization.exclude_modules",)
    assert (out / "hf_quant_config.json").read_bytes() == told
    assert verify(out).warnings == ()
    change_hf(out, lambda said: said["exclude_modules"].remove("model.extra"))
    change_declared(out, lambda said: said["ignore"].remove("model.extra"))
    assert metadata(out).dropped.keys() == {"quantization.exclude_modules"}
    assert verify(out).warnings == ()
    assert b"model.extra" not in path.read_bytes() + (out / "hf_quant_config.json").read_bytes()


# ---- scales ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "shape"), [("weight_scale", (64, 6)), ("weight_scale_2", ()), ("input_scale", ())]
)
def test_a_missing_scale_of_one_expert_is_named(
    suffix: str, shape: tuple[int, ...], spoiled: Callable[..., Path]
) -> None:
    (found,) = refused(spoiled(lambda tensors: tensors.pop(f"{EXPERT}.{suffix}")))
    assert isinstance(found, MissingScaleError)
    assert (found.exit_code, found.tensor, found.shape) == (3, f"{EXPERT}.{suffix}", shape)
    assert (found.format, found.declared_by) == ("NVFP4", "hf_quant_config.json")


def test_a_missing_scale_of_a_block_is_named(spoiled: Callable[..., Path]) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"  # [256, 384] in 128x128 blocks
    (found,) = refused(spoiled(lambda tensors: tensors.pop(name), "FP8_BLOCK"))
    assert isinstance(found, MissingScaleError)
    assert (found.tensor, found.shape) == (name, (2, 3))
    assert found.declared_by == "config.json's quantization_config"


def test_a_scale_of_a_wrong_shape_is_named_with_both(spoiled: Callable[..., Path]) -> None:
    def halve(tensors: Tensors) -> None:
        tensors[f"{EXPERT}.weight_scale"] = tensors[f"{EXPERT}.weight_scale"][:, :3].contiguous()

    (found,) = refused(spoiled(halve))
    assert isinstance(found, StoredOtherwiseError)
    assert (found.exit_code, found.tensor, found.what) == (4, f"{EXPERT}.weight_scale", "shape")
    assert (found.got, found.expected) == ("[64, 3]", "[64, 6]")


def test_block_scales_of_another_dtype_are_named(spoiled: Callable[..., Path]) -> None:
    def widen(tensors: Tensors) -> None:
        tensors[f"{EXPERT}.weight_scale"] = tensors[f"{EXPERT}.weight_scale"].float()

    (found,) = refused(spoiled(widen))
    assert isinstance(found, StoredOtherwiseError)
    assert (found.what, found.got, found.expected) == ("dtype", "F32", "F8_E4M3")


def test_an_expert_left_unquantized_beside_quantized_ones_is_named(spoiled: Callable[..., Path]) -> None:
    (found,) = refused(spoiled(lambda tensors: plain(tensors, EXPERT, 64, 96)))
    assert isinstance(found, StoredOtherwiseError)
    assert (found.tensor, found.got, found.expected) == (f"{EXPERT}.weight", "BF16", "U8")
    assert f"hf_quant_config.json says NVFP4 of {EXPERT}" in found.message()


def test_a_router_that_nobody_excludes_is_a_warning(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    change_hf(folder, lambda told: told["exclude_modules"].remove(ROUTER))
    change_declared(folder, lambda told: told["ignore"].remove(ROUTER))
    (warning,) = verify(folder).warnings
    assert warning.endswith("but stored plain is mlp.gate.weight of layer 1")


def test_a_checkpoint_that_only_says_that_it_is_quantized_is_refused_once(
    spoiled: Callable[..., Path],
) -> None:
    def widen(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            if tensor.dtype == torch.float8_e4m3fn:
                tensors[name] = tensor.bfloat16()
            elif name.endswith("_scale"):
                del tensors[name]

    (found,) = refused(spoiled(widen, "FP8"))
    assert isinstance(found, StoredOtherwiseError)
    assert "no weight is FP8, 112 are not" in found.message()  # 4 layers of 4 projections and 8 experts of 3


# ---- what is excluded, or not declared ------------------------------------------------------------------------


def test_scales_and_weight_of_an_excluded_module_are_named(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    exclude(folder, EXPERT)
    found = refused(folder)
    scales = {one.tensor: one.declared for one in found if isinstance(one, UndeclaredScaleError)}
    assert scales == dict.fromkeys(
        (f"{EXPERT}.{suffix}" for suffix in ("weight_scale", "weight_scale_2", "input_scale")),
        f"hf_quant_config.json excludes {EXPERT}",
    )
    (weight,) = (one for one in found if isinstance(one, StoredOtherwiseError))
    assert (weight.tensor, weight.got, weight.expected) == (f"{EXPERT}.weight", "U8", "plain")
    assert len(found) == 4


@pytest.mark.parametrize(
    "pattern", ["model.layers.1.mlp.experts.3*", "model.layers.1.mlp.experts.3", "*.3.up_proj"]
)
def test_patterns_and_names_above_exclude_too(pattern: str, spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    exclude(folder, pattern)
    assert f"{EXPERT}.weight" in {one.tensor for one in refused(folder)}


def test_an_excluded_module_that_is_plain_is_sound(spoiled: Callable[..., Path]) -> None:
    folder = spoiled(lambda tensors: plain(tensors, EXPERT, 64, 96))
    exclude(folder, EXPERT)
    assert verify(folder).warnings == ()


def test_a_mixture_that_does_not_list_a_quantized_module_is_refused(spoiled: Callable[..., Path]) -> None:
    folder = spoiled(recipe="MIXED")
    for change in (change_hf, change_declared):
        change(folder, lambda told: told["quantized_layers"].pop(EXPERT))
    found = refused(folder)
    assert {one.tensor for one in found} == {
        f"{EXPERT}.{suffix}" for suffix in ("weight", "weight_scale", "weight_scale_2", "input_scale")
    }
    assert f"hf_quant_config.json lists {EXPERT} as nothing" in found[0].message()


def test_a_mixture_that_lists_a_module_in_another_format_is_refused(spoiled: Callable[..., Path]) -> None:
    module = f"{ATTENTION}.q_proj"
    folder = spoiled(recipe="MIXED")
    for change in (change_hf, change_declared):
        change(folder, lambda told: told["quantized_layers"].update({module: {"quant_algo": "NVFP4"}}))
    (found,) = refused(folder)
    assert isinstance(found, StoredOtherwiseError)
    assert (found.tensor, found.got, found.expected) == (f"{module}.weight", "F8_E4M3", "U8")


def test_an_input_scale_of_a_format_without_one_is_named(spoiled: Callable[..., Path]) -> None:
    name = f"{EXPERT}.input_scale"
    (found,) = refused(spoiled(lambda tensors: tensors.update({name: torch.tensor(1.0)}), "W4A16_NVFP4"))
    assert isinstance(found, UndeclaredScaleError)
    assert (found.tensor, "which has none such" in found.message()) == (name, True)


def test_packed_weights_that_nothing_declares_are_named(spoiled: Callable[..., Path]) -> None:
    folder = spoiled(recipe="FP8")
    (folder / "hf_quant_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    found = refused(folder)
    weights = [one for one in found if isinstance(one, StoredOtherwiseError)]
    assert len(weights) == 112
    assert "config.json declares no quantization of weights" in weights[0].message()
    assert len([one for one in found if isinstance(one, UndeclaredScaleError)]) == 2 * 112


def test_shapes_of_packed_weights_are_compared_with_config(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"moe_intermediate_size": 32}))
    found = refused(folder)
    shapes = {(one.tensor.split(".")[-2], one.got, one.expected) for one in found}
    assert shapes == {
        ("gate_proj", "[64, 96]", "[32, 96]"), ("up_proj", "[64, 96]", "[32, 96]"),
        ("down_proj", "[96, 64]", "[96, 32]"),
    }  # fmt: skip


# ---- KV caches ------------------------------------------------------------------------------------------------


def cached(tensors: Tensors) -> None:
    for layer in range(4):
        for name in ("k_proj.k_scale", "v_proj.v_scale"):
            tensors[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor(0.5)


def declare_cache(folder: Path) -> Path:
    change_hf(folder, lambda told: told.update(kv_cache_quant_algo="FP8"))
    scheme = {"dynamic": False, "num_bits": 8, "type": "float"}
    change_declared(folder, lambda told: told.update(kv_cache_scheme=scheme))
    return folder


def test_a_cache_with_all_its_scales_is_sound(spoiled: Callable[..., Path]) -> None:
    assert verify(declare_cache(spoiled(cached))).warnings == ()


def test_a_missing_scale_of_a_cache_is_named(spoiled: Callable[..., Path]) -> None:
    name = f"{ATTENTION}.v_proj.v_scale"

    def without(tensors: Tensors) -> None:
        cached(tensors)
        del tensors[name]

    (found,) = refused(declare_cache(spoiled(without)))
    assert isinstance(found, MissingScaleError)
    assert (found.tensor, found.format) == (name, "KV cache FP8")


def test_a_cache_without_any_scale_is_a_warning(spoiled: Callable[..., Path]) -> None:
    (warning,) = verify(declare_cache(spoiled())).warnings
    assert warning.endswith("declares a KV cache of FP8, but it has no scale: readers take 1")


def test_scales_of_a_cache_that_nothing_declares_are_named(spoiled: Callable[..., Path]) -> None:
    found = refused(spoiled(cached))
    assert {type(one) for one in found} == {UndeclaredScaleError}
    assert len(found) == 8
    assert found[0].declared == "hf_quant_config.json declares no KV cache"


# ---- the two files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "in_hf", "in_config"),
    [
        (lambda told: told["ignore"].remove("lm_head"), "exclude_modules", "a list with lm_head",
         "a list without"),
        (lambda told: told["ignore"].append("extra"), "exclude_modules", "a list without",
         "a list with extra"),
        (lambda told: told.update(kv_cache_scheme="NVFP4"), "kv_cache_quant_algo", "None", "NVFP4"),
        (lambda told: told["config_groups"]["group_0"]["weights"].update(group_size=32), "group_size", "[16]",
         "[32]"),
    ],
    ids=["one excludes less", "one excludes more", "KV cache", "group size"],
)  # fmt: skip
def test_files_that_disagree_name_what_each_says(
    change: Callable[[Any], object], key: str, in_hf: str, in_config: str, spoiled: Callable[..., Path]
) -> None:
    folder = spoiled()
    change_declared(folder, change)
    (found,) = refused(folder)
    assert isinstance(found, DeclarationMismatchError)
    assert (found.exit_code, found.key) == (4, key)
    assert (found.in_hf_quant_config, found.in_config) == (in_hf, in_config)


def test_files_that_name_another_format_say_both(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    change_declared(folder, lambda told: told.update(quant_algo="W4A16_NVFP4"))
    (found,) = refused(folder)
    assert (found.key, found.in_hf_quant_config, found.in_config) == ("quant_algo", "NVFP4", "W4A16_NVFP4")


def test_a_declaration_in_one_file_only_is_a_warning(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    (folder / "hf_quant_config.json").unlink()
    assert verify(folder).warnings == (
        "only config.json declares the quantization: some readers look into hf_quant_config.json only",
    )


def test_a_method_that_no_row_describes_is_a_warning(spoiled: Callable[..., Path]) -> None:
    folder = spoiled()
    (folder / "hf_quant_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (warning,) = verify(folder).warnings
    assert warning.startswith("scales were not compared: config.json's quantization_config says gptq")


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(exclude_modules="lm_head"),
        lambda told: told.update(quant_algo=["FP8"]),
        lambda told: told.update(quantized_layers=["a"]),
        lambda told: told.update(group_size="many"),
        lambda told: told.update(kv_cache_quant_algo={"type": "float"}),
    ],
)
def test_a_declaration_that_is_none_is_refused(
    change: Callable[[Any], object], spoiled: Callable[..., Path]
) -> None:
    folder = spoiled()
    change_hf(folder, change)
    (found,) = refused(folder)
    assert isinstance(found, CorruptFileError)
    assert found.path == str(folder / "hf_quant_config.json")
