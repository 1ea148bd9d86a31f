"""FP8 by one scale, as it is divided where torch would round the scale: the numbers of modelopt on a CPU."""

from __future__ import annotations

import pytest
import torch
from modelopt.torch.export.quant_utils import to_quantized_weight

from shardmerge.phase1_dump.quantization.modelopt import divided


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_division_by_a_scalar_is_that_of_modelopt(dtype: torch.dtype) -> None:
    weight = torch.randn(400, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
    scale = weight.abs().max().float() / 448 * 1.001  # not a number of the weight's dtype
    expected = to_quantized_weight(weight, scale, "fp8")
    assert torch.equal(divided(weight, scale).view(torch.uint8), expected.view(torch.uint8))
    rounded = to_quantized_weight(weight, scale.to(dtype), "fp8")
    if dtype != torch.float32:
        assert not torch.equal(rounded.view(torch.uint8), expected.view(torch.uint8))
