"""An attention core that runs on a CPU, in place of the two that megatron-core brings.

The local spec's core refuses context parallelism and multi-latent head widths, and its dropout forks a CUDA
random state; Transformer Engine's needs a GPU. A core without softmax offset holds no parameter, so another
one changes no name and no shape. Must not know families or topologies.
"""

from typing import Any

import torch


class CpuAttention(torch.nn.Module):
    """Causal attention of [sequence, batch, heads, channels] tensors by torch's own kernel."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_ignored: object) -> None:
        """Take what megatron passes to any core; Raises ValueError for variants that carry parameters."""
        super().__init__()
        if getattr(config, "softmax_type", "vanilla") != "vanilla":
            raise ValueError(f"softmax_type {config.softmax_type} has a parameter, which this core lacks")
        self.softmax_scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_mask: object, **_ignored: object
    ) -> torch.Tensor:
        """Return [sequence, batch, heads * value channels]; every mask is taken to be the causal one."""
        repeats = query.shape[2] // key.shape[2]
        heads = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]  # [b, n, s, d]
        heads[1:] = [tensor.repeat_interleave(repeats, dim=1) for tensor in heads[1:]]
        context = torch.nn.functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], is_causal=True, scale=self.softmax_scale
        )
        return context.permute(2, 0, 1, 3).flatten(2)
