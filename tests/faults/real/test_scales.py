"""Scales and facts of a model that modelopt quantized: missing, spoiled, different on one rank, or a lie."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common import manifest as manifests
from shardmerge.common.errors import (
    BadScaleError,
    MismatchError,
    MissingTensorError,
    ProblemsFoundError,
    QuantizationMismatchError,
    ScalarMismatchError,
    UnexpectedTensorError,
)
from shardmerge.common.places import MANIFEST
from shardmerge.phase2_merge import check, merge
from tests.dumps.quantized_dumps import dump_quantized, edit_manifests, moved, with_scalar
from tests.faults.real.conftest import Victim
from tests.faults.real.test_tensors import without
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.quantizing import QWEN3_MOE
from tests.worlds.topology import Topology

EXPERT = "model.layers.3.mlp.experts.5.up_proj"  # held by ranks 2 and 3, written by one of them
SCALES = ("weight_scale", "weight_scale_2", "input_scale")
WORLD = Topology(tp=2, pp=2)  # rank 3: tp 1 of the second stage, layers 2 and 3


def drifted(rank: int, model: GPTModel) -> None:
    """Rank 3 calibrated q, k and v of layer 2 on its own: its range is twice that of rank 2."""
    if rank == 3:
        model.decoder.layers[0].self_attention.linear_qkv.weight_quantizer._amax.mul_(2)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference`, `dump` in NVFP4, and `drifted`, the same of another calibration."""
    folder = tmp_path_factory.mktemp("quantized")
    weights = write_hf_checkpoint(QWEN3_MOE, folder / "weights")
    (folder / "reference").mkdir()
    shutil.copy(weights / "config.json", folder / "reference")
    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", folder / "dump", folder / "reference")
    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", folder / "drifted", folder / "reference", spoil=drifted)
    return folder


@pytest.fixture
def victim(quantized: Path, tmp_path: Path) -> Callable[[], Victim]:
    def copy() -> Victim:
        for part in ("dump", "reference"):
            shutil.copytree(quantized / part, tmp_path / part)
        return Victim(tmp_path)

    return copy


def test_the_quantized_dump_is_whole_before_it_is_spoiled(victim: Callable[[], Victim]) -> None:
    one = victim()
    (warning,) = check([one.dump], hf_reference=one.reference).warnings
    assert warning.startswith("no tokenizer is beside config.json")


def test_unequal_scalars_name_tensors_ranks_and_both_values(
    victim: Callable[[], Victim], quantized: Path
) -> None:
    one = victim()
    shutil.rmtree(one.rank(3))
    shutil.copytree(quantized / "drifted" / "rank-00003", one.rank(3))
    found = one.refused(ProblemsFoundError, 4).problems
    assert {type(error) for error in found} == {ScalarMismatchError}
    assert [error.tensor for error in found] == [
        f"model.layers.2.self_attn.{name}_proj.weight_scale_2" for name in "kqv"
    ]
    for error in found:
        (first, of_first), (second, of_second) = error.values.items()
        assert (of_first, of_second) == ((2,), (3,))
        assert float(second) == pytest.approx(2 * float(first), rel=1e-6)
        assert f"{first} on rank 2; {second} on rank 3" in error.message()


def writer_of(one: Victim, tensor: str) -> int:
    """The only rank whose manifest lists a tensor."""
    (rank,) = (
        rank for rank in range(WORLD.world_size) if tensor in manifests.read(one.rank(rank) / MANIFEST).names
    )
    return rank


@pytest.mark.parametrize("suffix", SCALES)
def test_a_missing_scale_of_one_expert_is_named(suffix: str, victim: Callable[[], Victim]) -> None:
    one, name = victim(), f"{EXPERT}.{suffix}"
    rank = writer_of(one, name)
    one.rewrite([rank], without(rf"^{re.escape(name)}$"))
    error = one.refused(MissingTensorError, 3)
    assert rank in error.owed_by
    assert (error.tensor, error.shape) == (name, (64, 6) if suffix == "weight_scale" else ())
    assert f"{name} {list(error.shape)} is in no manifest" in error.message()


@pytest.mark.parametrize(
    ("kind", "value"),
    [(kind, value) for kind in ("weight", "input") for value in (float("nan"), float("inf"), -1.0)]
    + [("weight", 0.0)],
)
def test_a_range_that_is_zero_not_finite_or_negative_stops_the_rank_that_has_it(
    kind: str, value: float, quantized: Path, tmp_path: Path
) -> None:
    """Scales are made of ranges; modelopt would replace NaN silently. Zero for an input means: never seen."""

    def spoil(rank: int, model: GPTModel) -> None:
        if rank == 2:
            fc1 = model.decoder.layers[1].mlp.experts.local_experts[5].linear_fc1
            getattr(fc1, f"{kind}_quantizer")._amax.fill_(value)

    with pytest.raises(BadScaleError) as error:
        dump_quantized(QWEN3_MOE, WORLD, "NVFP4", tmp_path / "dump", quantized / "reference", spoil=spoil)
    local = "decoder.layers.1.mlp.experts.local_experts.5.linear_fc1.weight"
    assert (error.value.tensor, error.value.exit_code) == (f"{local}: {kind}_quantizer.amax", 4)
    assert (error.value.value, error.value.ranks) == (str(value), (2,))
    assert not (tmp_path / "dump" / "rank-00002").exists()


@pytest.mark.parametrize("value", [0.0, -0.25])
@pytest.mark.parametrize("suffix", SCALES[1:])
def test_a_scale_that_is_zero_or_negative_names_tensor_value_and_ranks(
    suffix: str, value: float, victim: Callable[[], Victim]
) -> None:
    one, name = victim(), f"{EXPERT}.{suffix}"
    edit_manifests(one.dump, with_scalar(name, value))
    error = one.refused(BadScaleError, 4)
    assert (error.tensor, error.value, error.ranks) == (name, str(value), (2, 3))


def test_formats_that_differ_between_ranks_name_module_and_both(
    victim: Callable[[], Victim], quantized: Path, tmp_path: Path
) -> None:
    """Rank 1 was quantized with another config than the rest."""
    recipes = ["NVFP4", "FP8", "NVFP4", "NVFP4"]
    out = tmp_path / "other"
    dump_quantized(QWEN3_MOE, WORLD, "", out, quantized / "reference", recipe_of_rank=recipes.__getitem__)
    one = victim()
    shutil.rmtree(one.rank(1))
    shutil.copytree(out / "rank-00001", one.rank(1))
    found = one.refused(ProblemsFoundError, 4).problems
    differing = {
        error.module: error.values for error in found if isinstance(error, QuantizationMismatchError)
    }
    assert differing["model.layers.0.self_attn.o_proj"] == {"NVFP4": (0,), "FP8": (1,)}
    assert {module.split(".")[2] for module in differing} == {"0", "1"}


def test_a_module_called_excluded_that_has_scales(victim: Callable[[], Victim]) -> None:
    one = victim()
    rank = writer_of(one, f"{EXPERT}.weight_scale")
    edit_manifests(one.dump, moved(EXPERT, "excluded"))
    found = one.refused(ProblemsFoundError, 4).problems
    unexpected = {error.tensor: error.ranks for error in found if isinstance(error, UnexpectedTensorError)}
    assert unexpected.keys() == {f"{EXPERT}.{suffix}" for suffix in SCALES}
    assert unexpected[f"{EXPERT}.weight_scale"] == (rank,)
    assert {error.tensor for error in found if isinstance(error, MismatchError)} == {f"{EXPERT}.weight"}


def test_a_module_called_quantized_that_has_no_scales(victim: Callable[[], Victim]) -> None:
    one, gate = victim(), "model.layers.2.mlp.gate"
    edit_manifests(one.dump, moved(gate, "NVFP4"))
    found = one.refused(ProblemsFoundError, 4).problems
    missing = {error.tensor: error.shape for error in found if isinstance(error, MissingTensorError)}
    assert missing == {
        f"{gate}.weight_scale": (8, 6),
        f"{gate}.weight_scale_2": (),
        f"{gate}.input_scale": (),
    }


def test_a_stale_quantization_config_of_the_reference_is_replaced(victim: Callable[[], Victim]) -> None:
    one = victim()
    path = one.reference / "config.json"
    stale = {"quant_method": "gptq", "bits": 4, "modules_to_not_convert": ["lm_head"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stale}))
    merge([one.dump], one.folder / "out", hf_reference=one.reference, workers=1)
    told = json.loads((one.folder / "out" / "config.json").read_text())["quantization_config"]
    assert (told["quant_method"], told["quant_algo"]) == ("modelopt", "NVFP4")
    assert not stale.keys() & told.keys() - {"quant_method"}
