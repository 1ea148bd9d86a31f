"""A step of DeepSeek-V3's multi-token prediction in plain torch, from the paper, on Hugging Face's names.

Decides nothing but arithmetic. Must not know megatron-core, transformers or shardmerge.
Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 2.2, equations 21 to 24, and section 2.1 for the layer;
github.com/deepseek-ai/DeepSeek-V3, inference/model.py, for rotary pairs and the choice of groups of experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import linear, pad, rms_norm, scaled_dot_product_attention, silu

from tests.worlds.families import Family
from tests.worlds.widths import Experts, Latent

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """The float32 tensors of one layer, by their names within it."""

    family: Family
    tensors: Weights

    def linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Apply a weight without bias to the last dimension."""
        return linear(values, self.tensors[f"{name}.weight"])

    def norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Apply a norm to the last dimension."""
        weight = self.tensors[f"{name}.weight"]
        return rms_norm(values, weight.shape, weight, self.family.norm_eps)


def step(
    family: Family, tensors: Weights, number: int, tokens: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict one token further.

    Args:
        family: sizes; it has a low-rank query.
        tensors: a whole checkpoint, in float32.
        number: of the layer, counted through from the first of the decoder.
        tokens: [batch, sequence], those whose embeddings are read: each one after that of `hidden` at its place.
        hidden: [batch, sequence, hidden], after the norm of the decoder or of the step before.

    Returns:
        hidden states after the step's norm, and float32 logits [batch, sequence, vocabulary] of its own head.
    """
    prefix = f"model.layers.{number}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layer = Layer(family, own)
    embedded = own["embed_tokens.weight"][tokens]
    joined = torch.cat([layer.norm("enorm", embedded), layer.norm("hnorm", hidden)], dim=-1)
    states = layer.linear("eh_proj", joined)
    states = states + _attention(layer, layer.norm("input_layernorm", states))
    states = states + _experts(layer, layer.norm("post_attention_layernorm", states))
    states = layer.norm("shared_head.norm", states)
    return states, layer.linear("shared_head.head", states)


def _attention(layer: Layer, states: torch.Tensor) -> torch.Tensor:
    """Multi-head latent attention (section 2.1.1)."""
    latent: Latent | None = layer.family.latent
    assert latent is not None
    query = layer.norm("self_attn.q_a_layernorm", layer.linear("self_attn.q_a_proj", states))
    query = layer.linear("self_attn.q_b_proj", query).unflatten(-1, (layer.family.heads, -1))
    down = layer.linear("self_attn.kv_a_proj_with_mqa", states)
    compressed, shared_key = down.split([latent.key_value_rank, latent.rope_channels], dim=-1)
    up = layer.linear("self_attn.kv_b_proj", layer.norm("self_attn.kv_a_layernorm", compressed))
    key, value = up.unflatten(-1, (layer.family.heads, -1)).split(
        [latent.nope_channels, latent.value_channels], dim=-1
    )
    plain, turned = query.split([latent.nope_channels, latent.rope_channels], dim=-1)
    query = torch.cat([plain, _rotated(turned, layer.family.rope_theta)], dim=-1)
    turned = _rotated(shared_key[:, :, None], layer.family.rope_theta)  # one for all heads
    key = torch.cat([key, turned.expand(*key.shape[:-1], -1)], dim=-1)
    query, key, value = (one.transpose(1, 2) for one in (query, key, value))  # [b, heads, s, channels]
    found = scaled_dot_product_attention(query, key, value, is_causal=True)
    return layer.linear("self_attn.o_proj", found.transpose(1, 2).flatten(2))


def _rotated(values: torch.Tensor, theta: int) -> torch.Tensor:
    """Turn pairs of neighbouring channels of [batch, sequence, heads, channels] by position."""
    channels = values.shape[-1]
    speeds = theta ** (-torch.arange(0, channels, 2) / channels)
    angles = torch.arange(values.shape[1])[:, None] * speeds
    pairs = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def _experts(layer: Layer, states: torch.Tensor) -> torch.Tensor:
    """Experts behind a router that limits groups and balances by a bias (section 2.1.2); and the shared expert."""
    experts: Experts | None = layer.family.experts
    assert experts is not None
    scores = layer.linear("mlp.gate", states).sigmoid()
    biased = scores + layer.tensors["mlp.gate.e_score_correction_bias"]
    groups = biased.unflatten(-1, (experts.router_groups, -1))
    best = groups.topk(2, dim=-1).values.sum(-1).topk(experts.groups_kept, dim=-1).indices
    allowed = (
        torch.zeros(groups.shape[:-1]).scatter(-1, best, 1.0)[..., None].expand(groups.shape).flatten(-2)
    )
    chosen = biased.masked_fill(allowed == 0, -torch.inf).topk(experts.top_k, dim=-1).indices
    weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
    weights = experts.scaling * weights / weights.sum(-1, keepdim=True)
    total = _gated(layer, "mlp.shared_experts", states)
    for expert in range(experts.num_experts):
        total = total + weights[..., expert, None] * _gated(layer, f"mlp.experts.{expert}", states)
    return total


def _gated(layer: Layer, name: str, states: torch.Tensor) -> torch.Tensor:
    gate, up = (layer.linear(f"{name}.{part}_proj", states) for part in ("gate", "up"))
    return layer.linear(f"{name}.down_proj", silu(gate) * up)


def shifted(tokens: torch.Tensor, places: int) -> torch.Tensor:
    """The tokens `places` after each; 0 where there is none, as megatron-core has it."""
    return pad(tokens[:, places:], (0, places))
