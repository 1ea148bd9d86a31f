"""Quantized models of modelopt: what is refused by name before anything is written, and that memory stays bounded."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from modelopt.torch.export import model_config
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer
from modelopt.torch.quantization.qtensor import FP8QTensor
from torch import nn

from shardmerge.common.errors import CutInsideBlockError, UnsupportedParameterError
from shardmerge.common.quantization import formats
from shardmerge.phase1_dump.quantization import derived as sources
from shardmerge.phase1_dump.quantization.modelopt import kv_cache_of
from shardmerge.phase2_merge import merge
from tests.dumps.quantized_dumps import dump_quantized
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, compress, quantize, recipe
from tests.worlds.topology import SINGLE, Topology

ONE = torch.ones(1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(QWEN3_MOE, tmp_path_factory.mktemp("quantized") / "hf")


# What modelopt's get_quantization_format can answer, each with a preset and what calibration would add to it.
WRITTEN = {"fp8", "nvfp4", "w4a16_nvfp4", "mxfp8", "fp8_pb_wo", "fp8_pb_real"}
REFUSED: dict[str, tuple[str, Callable[[Any], None] | None]] = {
    "int8_sq": ("INT8_DEFAULT_CFG", None),
    "int8_wo": ("INT8_WEIGHT_ONLY_CFG", None),
    "int4_awq": ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", None),
    "w4a8_awq": ("W4A8_AWQ_BETA_CFG", None),
    "nvfp4_awq": ("NVFP4_DEFAULT_CFG", lambda one: one.input_quantizer.__setattr__("pre_quant_scale", ONE)),
    "nvfp4_svdquant": (
        "NVFP4_DEFAULT_CFG",
        lambda one: one.weight_quantizer.__dict__.update(svdquant_lora_a=ONE),
    ),
    "w4a8_nvfp4_fp8": ("W4A8_NVFP4_FP8_CFG", None),
    "mxfp4": ("MXFP4_DEFAULT_CFG", None),
    "w4a8_mxfp4_fp8": ("W4A8_MXFP4_FP8_CFG", None),
    "fp8_pc_pt": ("FP8_PER_CHANNEL_PER_TOKEN_CFG", None),
}


def test_no_format_of_modelopt_is_forgotten() -> None:
    known = {value for name, value in vars(model_config).items() if name.startswith("QUANTIZATION_")} - {None}
    assert known == WRITTEN | set(REFUSED)
    assert {name for row in formats.FORMATS.values() for name in row.modelopt} == WRITTEN


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_without_a_row_is_refused_by_name(name: str, reference: Path, tmp_path: Path) -> None:
    preset, spoil = REFUSED[name]
    error = refusal(getattr(mtq, preset), reference, tmp_path / "dump", spoil)
    assert f"it is quantized as {name} of modelopt, which shardmerge does not write" in error.reason
    assert error.parameter == "decoder.layers.0.self_attention.linear_proj.weight"
    assert error.exit_code == 5


@pytest.mark.parametrize(
    ("preset", "reason"),
    [
        (
            "MXFP6_DEFAULT_CFG",
            "modelopt cannot export its quantizer: Unsupported quantizer with num_bits: (3, 2)",
        ),
        ("NVFP4_FOUR_OVER_SIX_CFG", "as nvfp4 of modelopt with static block scales"),
        ("NVFP4_MLP_WEIGHT_ONLY_CFG", "as w4a16_nvfp4 of modelopt in blocks of 1x32: readers take 1x16 only"),
    ],
)
def test_a_variant_that_readers_do_not_take_is_refused_by_name(
    preset: str, reason: str, reference: Path, tmp_path: Path
) -> None:
    assert reason in refusal(getattr(mtq, preset), reference, tmp_path / "dump").reason


def test_mxfp4_experts_alone_are_refused_by_name(reference: Path, tmp_path: Path) -> None:
    error = refusal(mtq.MXFP4_MLP_WEIGHT_ONLY_CFG, reference, tmp_path / "dump")
    assert "it is quantized as mxfp4 of modelopt" in error.reason
    assert error.parameter == "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"


@pytest.mark.parametrize("preset", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
def test_what_is_compressed_in_place_is_refused_unless_in_blocks(
    preset: str, reference: Path, tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        model = quantize(build_model(QWEN3_MOE, SINGLE), QWEN3_MOE, SINGLE, 0, getattr(mtq, preset))
        compress(model)
        with pytest.raises(UnsupportedParameterError, match=r"dump the model before mtq\.compress") as error:
            dumped(model, tmp_path / "dump", reference)
    assert error.value.parameter == "decoder.layers.0.self_attention.linear_proj.weight"
    assert not list((tmp_path / "dump").glob("rank-*/*"))


KV_CACHES: dict[str, dict[str, Any]] = {
    "INT8": {"num_bits": 8},
    "NVFP4": mtq.NVFP4_KV_CFG["quant_cfg"][0]["cfg"],
    "NVFP4_AFFINE": mtq.NVFP4_AFFINE_KV_CFG["quant_cfg"][0]["cfg"],
}


def test_no_kv_cache_of_modelopt_is_forgotten() -> None:
    known = {value for name, value in vars(model_config).items() if name.startswith("KV_CACHE_")}
    assert known == {"FP8", *KV_CACHES}
    assert set(formats.KV_CACHES) == {"FP8"}


@pytest.mark.parametrize("name", KV_CACHES)
def test_a_kv_cache_that_no_reader_takes_is_refused_by_name(name: str) -> None:
    """Quantizers of modelopt, where its attention of Transformer Engine has them."""
    core, model = nn.Module(), nn.Module()
    for side in "kv":
        quantizer = TensorQuantizer(QuantizerAttributeConfig(**KV_CACHES[name]))
        if name == "NVFP4_AFFINE":
            quantizer._bias_value = ONE
        setattr(core, f"{side}_bmm_quantizer", quantizer)
    model.core_attention = core
    with pytest.raises(UnsupportedParameterError) as error:
        list(kv_cache_of(model, 3))
    assert error.value.reason == f"its KV cache is quantized as {name}; known: FP8"
    assert (error.value.parameter, error.value.rank) == ("core_attention", 3)


def test_fp8_without_input_quantizers_is_refused(reference: Path, tmp_path: Path) -> None:
    config = recipe("FP8")
    config["quant_cfg"].append({"quantizer_name": "*input_quantizer", "enable": False})
    assert "with its input quantizer off" in refusal(config, reference, tmp_path / "dump").reason


def refusal(
    config: dict[str, Any], reference: Path, out: Path, spoil: Callable[[Any], None] | None = None
) -> UnsupportedParameterError:
    """What the dump of a model quantized without calibration raises; nothing may have been written."""
    with fake_world(SINGLE, 0):
        model = build_model(QWEN3_MOE, SINGLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # modelopt about its own modules
            mtq.quantize(model[0], copy.deepcopy(config) | {"algorithm": None}, forward_loop=None)
        if spoil is not None:
            spoil(model[0].decoder.layers[0].self_attention.linear_proj)
        with pytest.raises(UnsupportedParameterError) as error:
            dumped(model, out, reference)
    assert not list(out.glob("rank-*/*"))
    return error.value


def test_a_cut_inside_a_block_names_parameter_dim_size_and_block(
    references: References, tmp_path: Path
) -> None:
    """Experts of width 40 on two expert-tensor-parallel ranks: 20 columns each."""
    family = by_name("qwen3_moe")
    with fake_world(topology := Topology(tp=2, etp=2), 0):
        model = build_model(family, topology)
        config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
        rule = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
        for kind in ("weight", "input"):
            config["quant_cfg"].append({"quantizer_name": f"*linear_fc2.{kind}_quantizer", "cfg": rule})  # type: ignore[attr-defined]
        quantize(model, family, topology, 0, config)
        with pytest.raises(CutInsideBlockError) as error:
            dumped(model, tmp_path / "dump", references.config("qwen3_moe"))
    found = error.value
    assert found.parameter == "decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight"
    assert (found.dim, found.size, found.block, found.format, found.rank) == (1, 20, 16, "NVFP4", 0)


@pytest.mark.parametrize("name", ["NVFP4", "FP8", "MXFP8", "FP8_BLOCK"])
def test_packing_in_small_chunks_gives_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed at once is bounded; the bytes do not depend on the bound, nor on the staging buffer."""
    family = QWEN3_MOE_IN_BLOCKS if name == "FP8_BLOCK" else QWEN3_MOE
    reference = write_hf_checkpoint(family, tmp_path / "hf")
    dump_quantized(family, SINGLE, name, tmp_path / "large", reference)
    monkeypatch.setattr(sources, "CHUNK_ELEMENTS", 1 << 10)
    with fake_world(SINGLE, 0):
        model = build_model(family, SINGLE)
        fill(model, family, SINGLE, 0)
        quantize(model, family, SINGLE, 0, recipe(name))
        small = (
            200_000 if name == "FP8_BLOCK" else 3000
        )  # blocks of 128 rows are packed whole for every few rows
        dumped(model, tmp_path / "small", reference, staging_bytes=small)
    checksums = [
        json.loads((tmp_path / size / "rank-00000" / "manifest.json").read_bytes())["columns"]["xxh3_128"]
        for size in ("large", "small")
    ]
    assert checksums[0] == checksums[1]


def test_a_model_whose_quantizers_are_all_off_is_dumped_as_it_is(reference: Path, tmp_path: Path) -> None:
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
    with fake_world(SINGLE, 0):
        model = quantize(build_model(QWEN3_MOE, SINGLE), QWEN3_MOE, SINGLE, 0, config)
        found = dumped(model, tmp_path / "dump", reference)
    assert found.quantization is None
    assert found.dtypes == ["BF16"]


@pytest.mark.parametrize("topology", [SINGLE, Topology(tp=2, etp=2, pp=2)], ids=lambda one: one.name)
def test_compressed_blocks_are_written_as_modelopt_packed_them(topology: Topology, tmp_path: Path) -> None:
    """`mtq.compress` leaves e4m3 and scales of the weight's dtype; so packs modelopt's class the whole plain weight."""
    family = QWEN3_MOE_IN_BLOCKS
    reference = write_hf_checkpoint(family, tmp_path / "hf")
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            model = build_model(family, topology)
            fill(model, family, topology, rank)
            plain = dumped(model, tmp_path / "plain", reference)
            assert plain.quantization is None
            quantize(model, family, topology, rank, recipe("FP8_BLOCK"))
            compress(model)
            dumped(model, tmp_path / "dump", reference)
    for name in ("plain", "dump"):
        merge([tmp_path / name], tmp_path / f"{name}-merged", hf_reference=reference, workers=1)
    weights, found = (read_hf_tensors(tmp_path / f"{name}-merged") for name in ("plain", "dump"))
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(found[name], weight), name
            continue
        packed, scale = FP8QTensor.quantize(weight, block_sizes={-1: 128, -2: 128})
        assert torch.equal(found[name].view(torch.uint8), packed._quantized_data.view(torch.uint8)), name
        assert torch.equal(found[f"{name}_scale_inv"], scale.float()), name
    told = json.loads((tmp_path / "dump-merged" / "config.json").read_text())["quantization_config"]
    assert (told["quant_method"], told["weight_block_size"]) == ("fp8", [128, 128])
