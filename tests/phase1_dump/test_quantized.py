"""Quantized models of modelopt: what is refused by name before anything is written, and that memory stays bounded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest

from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.common.quantization_errors import CutInsideBlockError
from shardmerge.phase1_dump import sources
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase2_merge.quantized_dumps import dump_quantized
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, quantize, recipe
from tests.worlds.topology import SINGLE, Topology


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(QWEN3_MOE, tmp_path_factory.mktemp("quantized") / "hf")


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("INT8_DEFAULT_CFG", "int8_sq"),
        ("INT8_WEIGHT_ONLY_CFG", "int8_wo"),
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "int4_awq"),
        ("FP8_PER_CHANNEL_PER_TOKEN_CFG", "fp8_pc_pt"),
        ("MXFP4_DEFAULT_CFG", "mxfp4"),
        ("W4A8_MXFP4_FP8_CFG", "w4a8_mxfp4_fp8"),
        ("W4A8_NVFP4_FP8_CFG", "w4a8_nvfp4_fp8"),
        ("MXFP6_DEFAULT_CFG", "num_bits"),
    ],
)
def test_a_format_without_a_row_is_refused_by_name(
    preset: str, name: str, reference: Path, tmp_path: Path
) -> None:
    config = copy.deepcopy(getattr(mtq, preset)) | {"algorithm": None}
    error = refusal(config, reference, tmp_path / "dump")
    assert name in error.reason
    assert error.parameter.startswith("decoder.layers.0.")


def test_fp8_without_input_quantizers_is_refused(reference: Path, tmp_path: Path) -> None:
    config = recipe("FP8")
    config["quant_cfg"].append({"quantizer_name": "*input_quantizer", "enable": False})
    assert "with its input quantizer off" in refusal(config, reference, tmp_path / "dump").reason


def refusal(config: dict[str, Any], reference: Path, out: Path) -> UnsupportedParameterError:
    with fake_world(SINGLE, 0):
        model = quantize(build_model(QWEN3_MOE, SINGLE), QWEN3_MOE, SINGLE, 0, config)
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
        rule = {"num_bits": (2, 1), "block_sizes": {-1: 4, "type": "dynamic", "scale_bits": (4, 3)}}
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
        from tests.worlds.filling import fill

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
    assert found.quantization == {}
    assert found.dtypes == ["BF16"]
