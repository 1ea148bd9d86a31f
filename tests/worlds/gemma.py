"""Parts of Gemma 3 that megatron-core lacks, as Megatron-Bridge adds them, on a CPU.

Norms after both halves of a layer, two rotary bases, and an embedding times the root of its width. Must not know
families. Source: megatron-bridge, models/gemma/gemma3_provider.py, models/common/te_layers.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention

from tests.worlds.centred_norm import CentredNorm


def add_norms(layer: Any, *, te: bool) -> None:
    """Let the output of attention and that of the MLP be normed, in the spec of a layer."""
    submodules = layer.submodules
    submodules.self_attention.module = TwoBaseAttention
    submodules.self_attention.submodules.linear_proj = _normed(te)
    mlp = submodules.mlp  # a spec in 0.16, a partial in 0.19
    (mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules).linear_fc2 = _normed(te)


def add_scale_and_bases(model: Any, theta: int, local_theta: int) -> None:
    """Let a model multiply what it embeds, and rotate by another base in layers with a window."""
    if hasattr(model, "embedding"):
        model.embedding.__class__ = Gemma3LanguageModelEmbedding
    model.rotary_pos_emb = TwoBases(model.config, theta, local_theta)


class Gemma3LanguageModelEmbedding(LanguageModelEmbedding):
    """Known by its name, as Bridge's."""

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Return [sequence, batch, hidden]."""
        embedded: torch.Tensor = super().forward(*arguments, **options)
        return embedded * float(self.config.hidden_size**0.5)


class TwoBases(RotaryEmbedding):
    """Returns both embeddings, that of layers with a window first."""

    def __init__(self, config: Any, theta: int, local_theta: int) -> None:
        """Build megatron-core's embedding twice."""
        options = {"kv_channels": config.kv_channels, "rotary_percent": 1.0, "use_cpu_initialization": True}
        super().__init__(**options, rotary_base=theta)
        self.rope_local = RotaryEmbedding(**options, rotary_base=local_theta)

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Return [2, sequence, 1, 1, channels]."""
        return torch.stack([self.rope_local(*arguments, **options), super().forward(*arguments, **options)])


class TwoBaseAttention(SelfAttention):
    """Takes the embedding that is meant for its layer."""

    def forward(self, *arguments: Any, rotary_pos_emb: Any = None, **options: Any) -> Any:
        """Call megatron-core's attention with one embedding."""
        config = self.config
        local = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, self.layer_number)
        return super().forward(*arguments, rotary_pos_emb=rotary_pos_emb[0 if local else 1], **options)


class PostNormed(RowParallelLinear):
    """A projection whose output is normed."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
        """Take what megatron-core gives to a projection."""
        super().__init__(input_size, output_size, config=config, **options)
        self.post_layernorm = CentredNorm(config, output_size, config.layernorm_epsilon)

    def forward(self, values: torch.Tensor) -> Any:
        """Project, and norm the last dimension."""
        output, bias = super().forward(values)
        return self.post_layernorm(output), bias


def _normed(te: bool) -> Any:
    return _te_normed() if te else PostNormed


def _te_normed() -> Any:
    """Return the same of Transformer Engine's modules, which are imported only where they are asked for."""
    from megatron.core.extensions.transformer_engine import TENorm, TERowParallelLinear

    class TEPostNormed(TERowParallelLinear):
        """It is built, and never computes."""

        def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
            """Take what megatron-core gives to a projection."""
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = TENorm(config, output_size)

    return TEPostNormed
