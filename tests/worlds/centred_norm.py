"""Norms with weights stored minus one, for the local spec: megatron-core's torch norms refuse that.

Must not know families. Source: transformer_engine, pytorch/module/{layernorm,rmsnorm}.py (`zero_centered_gamma`).
"""

from typing import Any

import torch


class CentredNorm(torch.nn.Module):
    """LayerNorm or RMSNorm, as the config says. Takes what megatron-core gives to any norm; says that it adds one."""

    zero_centered_gamma = True

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_ignored: object) -> None:
        """Start with weights that are 0 and so count as 1."""
        super().__init__()
        self.eps, self.shape = eps, (hidden_size,)
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
        if config.normalization == "LayerNorm":
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Norm the last dimension."""
        if hasattr(self, "bias"):
            return torch.nn.functional.layer_norm(values, self.shape, self.weight + 1, self.bias, self.eps)
        return torch.nn.functional.rms_norm(values, self.shape, self.weight + 1, self.eps)
