"""A model with the shape of Nemotron-H as training has it: Transformer Engine's modules, grouped experts, any size.

Layers are attention and routed experts in turn, without Mamba mixers, whose kernels a host may lack. Must not know
what is measured on it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is. `pairs`: of an attention layer and one of experts."""

    pairs: int
    hidden: int = 4096
    width: int = 2048
    shared_width: int = 4096
    experts: int = 128
    top_k: int = 6
    heads: int = 32
    groups: int = 8
    head_channels: int = 128
    vocab: int = 32768

    @property
    def pattern(self) -> str:
        return "*E" * self.pairs


SMALL = Size(2, 256, 128, 192, 8, 2, 4, 2, 64, 1024)
PAIR_BYTES = 4.56e9  # of a pair of the large size, in bfloat16


def of_bytes(num_bytes: float) -> Size:
    """The large size, with so many layers that it has about as many bytes."""
    return Size(max(1, round(num_bytes / PAIR_BYTES)))


def build(size: Size, ep: int, device: torch.device, **options: Any) -> Any:
    """This rank's part of a HybridModel, with random weights; of the same values at any `ep`."""
    from megatron.core.activations import squared_relu
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec
    from megatron.core.models.hybrid.hybrid_model import HybridModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=len(size.pattern), hidden_size=size.hidden, num_attention_heads=size.heads,
        num_query_groups=size.groups, kv_channels=size.head_channels, ffn_hidden_size=size.width,
        num_moe_experts=size.experts, moe_ffn_hidden_size=size.width, moe_router_topk=size.top_k, moe_grouped_gemm=True,
        moe_shared_expert_intermediate_size=size.shared_width, moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True, expert_model_parallel_size=ep,
        moe_token_dispatcher_type="alltoall" if device.type == "cuda" else "allgather",
        bf16=True, params_dtype=torch.bfloat16, add_bias_linear=False, normalization="RMSNorm",
        gated_linear_unit=False, activation_func=squared_relu, is_hybrid_model=True, gradient_accumulation_fusion=False,
        attention_dropout=0.0, hidden_dropout=0.0, bias_activation_fusion=False, perform_initialization=False,
        use_cpu_initialization=device.type == "cpu", **options,
    )  # fmt: skip
    model: Any = HybridModel(
        config,
        hybrid_stack_spec,
        vocab_size=size.vocab,
        max_sequence_length=4096,
        hybrid_layer_pattern=size.pattern,
    )
    model = model.to(device)
    with torch.no_grad():
        for name, tensor in _global_names(model, ep):
            _draw(name, tensor)
    return model


def _global_names(model: Any, ep: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and router bias by a name that is the same at any expert parallelism."""
    from megatron.core import parallel_state

    first = parallel_state.get_expert_model_parallel_rank() * (model.config.num_moe_experts // ep)
    biases = [(name, one) for name, one in model.named_buffers() if name.endswith("expert_bias")]
    for name, tensor in [*model.named_parameters(), *biases]:
        yield (
            re.sub(r"(experts\.linear_fc[12]\.weight)(\d+)$", lambda m: f"{m[1]}{int(m[2]) + first}", name),
            tensor,
        )


def _draw(name: str, tensor: torch.Tensor) -> None:
    """Normal values that depend on the name alone; of norms, values about one."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    generator = torch.Generator(device=tensor.device).manual_seed(seed)
    if "norm" in name:
        tensor.uniform_(0.5, 1.5, generator=generator)
    else:
        tensor.normal_(0, 0.02, generator=generator)


def write_reference(size: Size, folder: Path) -> Path:
    """config.json, as transformers and Model-Optimizer's exporter read it."""
    from transformers import NemotronHConfig

    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "vocab_size": size.vocab, "hidden_size": size.hidden, "hybrid_override_pattern": size.pattern,
        "num_hidden_layers": len(size.pattern), "num_attention_heads": size.heads,
        "num_key_value_heads": size.groups,
        "head_dim": size.head_channels, "intermediate_size": size.width, "n_routed_experts": size.experts,
        "n_shared_experts": 1,
        "moe_intermediate_size": size.width, "moe_shared_expert_intermediate_size": size.shared_width,
        "num_experts_per_tok": size.top_k, "tie_word_embeddings": False, "architectures": ["NemotronHForCausalLM"],
    }  # fmt: skip
    NemotronHConfig(**given).save_pretrained(folder)
    return folder


def train_step(model: Any, tokens: torch.Tensor, rate: float = 1e-6) -> float:
    """Forward, backward and a plain step in place. Returns the loss; the device is done with everything."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    loss = model(tokens, positions, None).float().logsumexp(-1).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-rate)
                parameter.grad.zero_()
    return float(loss)
