"""An attention core that runs on a CPU, in place of the two that megatron-core brings.

The local spec's core refuses context parallelism and multi-latent head widths, and its dropout forks a CUDA
random state; Transformer Engine's needs a GPU. Sinks are a parameter, described as megatron-core's own core describes
it. Must not know families or topologies.
"""

from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.utils import is_layer_window_attention


class CpuAttention(torch.nn.Module):
    """Causal attention of [sequence, batch, heads, channels] tensors."""

    def __init__(
        self,
        config: Any,
        layer_number: int = 1,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_ignored: object,
    ) -> None:
        """Take what megatron passes to any core."""
        super().__init__()
        self.config, self.softmax_scale = config, softmax_scale
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] + 1 if windowed else None
        self.tp_group = getattr(pg_collection, "tp", None)
        if config.softmax_type == "learnable":
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = torch.nn.Parameter(torch.zeros(heads, dtype=config.params_dtype))

    def sharded_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Describe the sinks, if there are any, in the words of megatron-core's own core."""
        described: Any = DotProductAttention.sharded_state_dict
        return described(self, *arguments, **options)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_mask: object, **_ignored: object
    ) -> torch.Tensor:
        """Return [sequence, batch, heads * value channels]; every mask is taken to be the causal one."""
        repeats = query.shape[2] // key.shape[2]
        heads = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]  # [b, n, s, d]
        heads[1:] = [tensor.repeat_interleave(repeats, dim=1) for tensor in heads[1:]]
        scores = heads[0] @ heads[1].mT * (self.softmax_scale or query.shape[-1] ** -0.5)  # [b, n, s, s]
        weights = self._softmax(scores.masked_fill(~self._seen(query.shape[0]), float("-inf")))
        return (weights @ heads[2]).permute(2, 0, 1, 3).flatten(2)

    def _seen(self, length: int) -> torch.Tensor:
        """Return which keys [s, s] each query sees."""
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return causal if self.window is None else causal.triu(1 - self.window)

    def _softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Return weights [b, n, s, s]; a sink of each head takes its part of them."""
        if self.config.softmax_type != "learnable":
            return scores.softmax(-1)
        sinks = self.softmax_offset[None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
