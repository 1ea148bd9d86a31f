"""Transformer Engine's real quantized parameters: written in blocks, dequantized, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from shardmerge.common.errors import BadScaleError, ProblemsFoundError, ShardmergeError
from shardmerge.phase2_merge import merge
from tests.phase1_dump.te_weight_jobs import dump_kind, dump_with_scale, freed_refusal, refusal_of
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS
from tests.worlds.te_weights import in_blocks, in_rows_of_32
from tests.worlds.topology import SINGLE, Topology

grouped_parameters = pytest.mark.peers  # megatron-core 0.16 knows no GroupedTensor parameter
WORLDS = [SINGLE, Topology(tp=2, pp=2, ep=2), Topology(tp=2, etp=2, ep=2, dp=2)]
QUANTIZED = ("_proj.weight",)  # attention and experts; Qwen3-MoE has no other projection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References of both families, without weights."""
    made = tmp_path_factory.mktemp("te-weights")
    for family in (QWEN3_MOE, QWEN3_MOE_IN_BLOCKS):
        full = write_hf_checkpoint(family, made / "full" / str(family.hidden))
        (made / str(family.hidden)).mkdir()
        for file in full.glob("*.json"):
            if "index" not in file.name:
                (made / str(family.hidden) / file.name).write_bytes(file.read_bytes())
    return made


def merged(
    te_ranks: GlooRanks, kind: str, family: Family, topology: Topology, folder: Path, out: Path,
    *, dequantize: bool = False,
) -> Path:  # fmt: skip
    reference = folder / str(family.hidden)
    te_ranks.call(dump_kind, kind, family, topology, out / "dump", reference, dequantize)
    merge([out / "dump"], out / "merged", hf_reference=reference, workers=1)
    return out / "merged"


def assert_packed(path: Path, plain: dict[str, torch.Tensor], pack: object, scale_name: str) -> None:
    """Every projection is what `pack` makes of the whole plain tensor, everything else is as it was."""
    found, expected = read_hf_tensors(path), {}
    for name, tensor in plain.items():
        expected[name] = tensor
        if name.endswith(QUANTIZED):
            assert callable(pack)
            expected[name], expected[name.replace("weight", scale_name)] = pack(tensor)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("topology", WORLDS, ids=lambda one: one.name)
def test_blockwise_parameters_become_native_block_fp8(
    topology: Topology, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    plain = merged(te_ranks, "plain", QWEN3_MOE_IN_BLOCKS, SINGLE, folder, tmp_path / "plain")
    path = merged(te_ranks, "blockwise", QWEN3_MOE_IN_BLOCKS, topology, folder, tmp_path / "blocks")
    assert_packed(path, read_hf_tensors(plain), in_blocks, "weight_scale_inv")
    config = json.loads((path / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [
            "lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate",
        ],
    }  # fmt: skip
    assert not (path / "hf_quant_config.json").exists()


@grouped_parameters
@pytest.mark.parametrize("topology", [SINGLE, Topology(ep=2, dp=2)], ids=lambda one: one.name)
def test_a_grouped_tensor_is_written_expert_by_expert(
    topology: Topology, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    plain = read_hf_tensors(
        merged(te_ranks, "plain", QWEN3_MOE_IN_BLOCKS, SINGLE, folder, tmp_path / "plain")
    )
    found = read_hf_tensors(
        merged(te_ranks, "grouped", QWEN3_MOE_IN_BLOCKS, topology, folder, tmp_path / "one")
    )
    for name, tensor in plain.items():
        if ".experts." not in name:
            assert torch.equal(found[name], tensor)
            continue
        packed, scale = in_blocks(tensor)
        assert torch.equal(found[name].view(torch.uint8), packed.view(torch.uint8)), name
        assert torch.equal(found[f"{name}_scale_inv"], scale), name


@pytest.mark.parametrize("topology", WORLDS, ids=lambda one: one.name)
def test_microscaled_parameters_keep_their_powers_of_two(
    topology: Topology, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    plain = merged(te_ranks, "plain", QWEN3_MOE, SINGLE, folder, tmp_path / "plain")
    path = merged(te_ranks, "microscaled", QWEN3_MOE, topology, folder, tmp_path / "mx")
    assert_packed(path, read_hf_tensors(plain), in_rows_of_32, "weight_scale")
    told = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
    assert (told["quant_algo"], told["group_size"]) == ("MXFP8", 32)


@pytest.mark.parametrize(
    "kind", ["blockwise", "tensorwise", pytest.param("grouped", marks=grouped_parameters)]
)
def test_dequantized_parameters_are_bf16(
    kind: str, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    topology = Topology(tp=2, etp=2, pp=2)
    plain = read_hf_tensors(
        merged(te_ranks, "plain", QWEN3_MOE_IN_BLOCKS, SINGLE, folder, tmp_path / "plain")
    )
    path = merged(te_ranks, kind, QWEN3_MOE_IN_BLOCKS, topology, folder, tmp_path / "bf16", dequantize=True)
    found = read_hf_tensors(path)
    assert found.keys() == plain.keys()
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    for name, tensor in plain.items():
        assert found[name].dtype == torch.bfloat16
        rtol, atol = (2**-4, 2**-7) if name.endswith(QUANTIZED) else (0.0, 0.0)
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol)


def test_dequantized_blocks_are_what_transformers_loads(
    te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    """transformers multiplies the merged block FP8 out; the dump with dequantize=True says the same, bit for bit."""
    topology = Topology(tp=2, pp=2, ep=2)
    blocks = merged(te_ranks, "blockwise", QWEN3_MOE_IN_BLOCKS, topology, folder, tmp_path / "blocks")
    plain = merged(
        te_ranks, "blockwise", QWEN3_MOE_IN_BLOCKS, topology, folder, tmp_path / "bf16", dequantize=True
    )
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs, ours = (load(path, dtype=torch.bfloat16).state_dict() for path in (blocks, plain))
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(theirs[name], ours[name])] == []


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -0.5])
def test_a_block_scale_that_is_none_is_recorded_and_stops_the_merge(
    value: float, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    """Expert 1 of rank 1 is expert 3 of the model; the dump looks at every scale while it writes it."""
    reference = folder / str(QWEN3_MOE_IN_BLOCKS.hidden)
    given = (value, 1, Topology(ep=2, dp=2), QWEN3_MOE_IN_BLOCKS, tmp_path / "dump", reference)
    te_ranks.call(dump_with_scale, *given)
    with pytest.raises(ShardmergeError) as caught:
        merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    found = caught.value.problems if isinstance(caught.value, ProblemsFoundError) else [caught.value]
    (error,) = (one for one in found if isinstance(one, BadScaleError))
    assert error.tensor == "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv"
    assert error.value == "zero, negative or not finite in 1 element"
    assert (error.ranks, caught.value.exit_code) == ((1,), 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tensorwise", "it is a Float8Tensor on whose form the readers of checkpoints do not agree"),
        ("rowwise blocks", "it is a Float8BlockwiseQTensor with blocks of one row"),
        ("swizzled", "it is a MXFP8Tensor whose scales are swizzled for a kernel"),
        ("nvfp4", "it is a NVFP4Tensor which shardmerge does not write"),
    ],
)
def test_what_no_reader_takes_is_refused_by_name(
    kind: str, reason: str, te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    family = QWEN3_MOE if kind == "swizzled" else QWEN3_MOE_IN_BLOCKS
    given = (family, SINGLE, tmp_path / "dump", folder / str(family.hidden))
    name, message = te_ranks.call(refusal_of, kind, *given)
    assert name == "UnsupportedParameterError"
    assert "decoder.layers.0.self_attention.linear_proj.weight on rank 0" in message
    assert reason in message
    assert "dequantize=True" in message
    assert not list((tmp_path / "dump").glob("rank-*/*"))


def test_freed_raw_data_is_refused(te_ranks: GlooRanks, folder: Path, tmp_path: Path) -> None:
    given = (QWEN3_MOE_IN_BLOCKS, tmp_path / "dump", folder / str(QWEN3_MOE_IN_BLOCKS.hidden))
    name, message = te_ranks.call(freed_refusal, *given)
    assert name == "UnsupportedParameterError"
    assert "linear_proj.weight on rank 0: it is a Float8BlockwiseQTensor whose data is freed" in message


def test_a_cut_inside_a_block_names_parameter_dim_size_and_block(
    te_ranks: GlooRanks, folder: Path, tmp_path: Path
) -> None:
    """Experts of width 256 on four expert-tensor-parallel ranks: 64 columns each."""
    topology = Topology(tp=4, etp=4)
    given = (QWEN3_MOE_IN_BLOCKS, topology, tmp_path / "dump", folder / str(QWEN3_MOE_IN_BLOCKS.hidden))
    name, message = te_ranks.call(refusal_of, "blockwise", *given)
    assert name == "CutInsideBlockError"
    assert "decoder.layers.0.mlp.experts.linear_fc" in message or "linear_proj" in message
    assert "a part of 64 in dim" in message
    assert "inside a FP8_BLOCK block of 128" in message
