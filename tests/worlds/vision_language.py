"""A megatron-core model that holds a language model and a vision tower, with the keys of Megatron-Bridge's composites.

The tower is megatron-core's own CLIP, whose layers have a config of their own. Positions have several axes that take
turns, as Qwen3-VL's and unlike megatron-core's. Must not know checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_local_spec
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from tests.worlds.attention import CpuAttention


class AxesInTurn(MultimodalRotaryEmbedding):
    """Positions of three axes [3, batch, sequence], whose pairs alternate: t h w t h w ... t t."""

    def apply_interleaved_mrope(self, freqs: torch.Tensor, sections: list[int]) -> torch.Tensor:
        """Return [batch, sequence, pairs] of [3, batch, sequence, pairs]."""
        taken = freqs[0].clone()
        for axis in (1, 2):
            pairs = slice(axis, sections[axis] * 3, 3)
            taken[..., pairs] = freqs[axis][..., pairs]
        return taken

    def forward(self, position_ids: torch.Tensor, mrope_section: list[int], **_: Any) -> torch.Tensor:
        """Return angles [sequence, batch, 1, channels]."""
        if position_ids.ndim == 2:
            position_ids = position_ids.expand(3, *position_ids.shape)
        freqs = position_ids[..., None].float() * self.inv_freq
        taken = self.apply_interleaved_mrope(freqs, mrope_section)
        return torch.cat((taken, taken), dim=-1)[..., None, :].transpose(0, 1).contiguous()


class VisionLanguageModel(MegatronModule):
    """A language model, and on the first stage a tower."""

    def __init__(self, language_model: GPTModel, config: TransformerConfig, tower: str) -> None:
        """Build the tower, under this name, beside a language model whose config this is."""
        super().__init__(config)
        self.language_model = language_model
        self.share_embeddings_and_output_weights = language_model.share_embeddings_and_output_weights
        self.pre_process, self.post_process = language_model.pre_process, language_model.post_process
        if language_model.pre_process:
            self.add_module(tower, _tower(config).requires_grad_(False))

    @property
    def decoder(self) -> Any:
        """The language model's layers."""
        return self.language_model.decoder

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Compute the logits of tokens."""
        return self.language_model(*arguments, **options)


def language_model_of(chunk: Any) -> Any:
    """The language model of a chunk, which may be one itself."""
    return getattr(chunk, "language_model", chunk)


def remove_tower(chunk: Any) -> None:
    """Leave a composite its language model alone, below the same prefix."""
    for name in [name for name, _ in chunk.named_children() if name != "language_model"]:
        delattr(chunk, name)


def _tower(language: TransformerConfig) -> CLIPViTModel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=24,
        num_attention_heads=4,
        ffn_hidden_size=44,
        tensor_model_parallel_size=language.tensor_model_parallel_size,
        layernorm_epsilon=1e-3,  # another than any language model's
        normalization="LayerNorm",
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        persist_layer_norm=False,
        params_dtype=language.params_dtype,
        bf16=language.bf16,
    )
    spec = get_vit_layer_with_local_spec()
    spec.submodules.self_attention.submodules.core_attention = CpuAttention
    norms = {"ln_pre_impl": WrappedTorchNorm, "ln_post_impl": WrappedTorchNorm}
    return CLIPViTModel(config, spec, img_h=8, img_w=8, patch_dim=4, **norms)
