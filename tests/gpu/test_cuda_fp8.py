"""FP8 parameters that Transformer Engine itself made on the device: written in blocks, or dequantized.

What is expected is read off the parameter's own raw tensors and `dequantize()`, cut by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_cuda_dump import (
    EXPERTS,
    GROUPS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    WAYS,
    WIDTH,
    build,
    dumped,
    write,
)

pytestmark = pytest.mark.gpu

BLOCK = 128


def raw(parameter: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 numbers [N, K] and scales [ceil(N / 128), ceil(K / 128)] of a blockwise parameter, on the host."""
    rows, columns = parameter.shape
    scales = parameter._rowwise_scale_inv[: -(-rows // BLOCK), : -(-columns // BLOCK)]
    return parameter._rowwise_data.view(torch.float8_e4m3fn).cpu(), scales.cpu()


def by_group(numbers: torch.Tensor, part: slice | int, rows_a_head: int) -> torch.Tensor:
    """Queries, keys or values of a fused q/k/v whose heads have `rows_a_head` rows."""
    shaped = numbers.view(torch.uint8) if numbers.dtype == torch.float8_e4m3fn else numbers
    shaped = shaped.view(GROUPS, HEADS // GROUPS + 2, rows_a_head, numbers.shape[1])[:, part]
    return shaped.reshape(-1, numbers.shape[1]).view(numbers.dtype)


@pytest.fixture
def blockwise(world: None) -> Any:
    """A model whose weights are Float8BlockwiseQTensor."""
    return build(fp8="e4m3", fp8_recipe="blockwise", fp8_param=True)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bytes."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("way", WAYS)
def test_blockwise_parameters_are_written_as_they_are(
    blockwise: Any, reference: Path, tmp_path: Path, way: str
) -> None:
    write(way, blockwise, tmp_path / "d", reference)
    found = dumped(tmp_path / "d")
    for layer in range(LAYERS):
        block, hf = blockwise.decoder.layers[layer], f"model.layers.{layer}."
        numbers, scales = raw(block.self_attention.linear_qkv.weight)
        for name, part in (("q", slice(0, -2)), ("k", -2), ("v", -1)):
            key = f"{hf}self_attn.{name}_proj."
            assert equal(found[key + "weight"], by_group(numbers, part, HEAD_DIM))
            assert equal(found[key + "weight_scale_inv"], by_group(scales, part, HEAD_DIM // BLOCK))
        for expert in range(EXPERTS):
            key = f"{hf}mlp.experts.{expert}."
            numbers, scales = raw(getattr(block.mlp.experts.linear_fc1, f"weight{expert}"))
            assert equal(found[key + "gate_proj.weight"], numbers[:WIDTH])
            assert equal(found[key + "up_proj.weight"], numbers[WIDTH:])
            assert equal(found[key + "gate_proj.weight_scale_inv"], scales[: WIDTH // BLOCK])
            assert equal(found[key + "up_proj.weight_scale_inv"], scales[WIDTH // BLOCK :])
            numbers, scales = raw(getattr(block.mlp.experts.linear_fc2, f"weight{expert}"))
            assert equal(found[key + "down_proj.weight"], numbers)
            assert equal(found[key + "down_proj.weight_scale_inv"], scales)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["blockwise", "tensorwise", "delayed"])
def test_dequantized_is_what_transformer_engine_computes(
    world: None, recipe: str, reference: Path, tmp_path: Path, way: str
) -> None:
    model = build(fp8="e4m3" if recipe == "blockwise" else "hybrid", fp8_recipe=recipe, fp8_param=True)
    write(way, model, tmp_path / "d", reference, dequantize=True)
    found = dumped(tmp_path / "d")
    for layer in range(LAYERS):
        experts = model.decoder.layers[layer].mlp.experts
        for expert in range(EXPERTS):
            key = f"model.layers.{layer}.mlp.experts.{expert}."
            fc1 = getattr(experts.linear_fc1, f"weight{expert}").dequantize().cpu()
            fc2 = getattr(experts.linear_fc2, f"weight{expert}").dequantize().cpu()
            assert equal(found[key + "gate_proj.weight"], fc1[:WIDTH].to(torch.bfloat16))
            assert equal(found[key + "up_proj.weight"], fc1[WIDTH:].to(torch.bfloat16))
            assert equal(found[key + "down_proj.weight"], fc2.to(torch.bfloat16))
