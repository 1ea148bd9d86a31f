"""LayerNorm with weights stored minus one, for the local spec: megatron-core's torch norms refuse that.

Must not know families. Source: transformer_engine, pytorch/module/layernorm.py (`zero_centered_gamma`).
"""

from typing import Any

import torch


class CentredLayerNorm(torch.nn.LayerNorm):
    """Takes what megatron-core gives to any norm."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_ignored: object) -> None:
        """Start with weights that are 0 and so count as 1."""
        super().__init__(hidden_size, eps)
        torch.nn.init.zeros_(self.weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Norm the last dimension."""
        return torch.nn.functional.layer_norm(
            values, self.normalized_shape, self.weight + 1, self.bias, self.eps
        )
