"""torch dtypes by their safetensors names."""

from __future__ import annotations

import pytest
import torch

from shardmerge.common.errors import BadInputError
from shardmerge.phase1_dump.quantization.element_types import dtype_name


def test_a_params_dtype_that_weights_are_not_kept_in_is_refused() -> None:
    assert dtype_name(torch.bfloat16) == "BF16"
    with pytest.raises(BadInputError, match=r"params_dtype torch\.int8"):
        dtype_name(torch.int8)
