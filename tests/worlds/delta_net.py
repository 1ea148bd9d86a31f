"""Layers with a Gated DeltaNet, beside others with attention whose output a gate multiplies: their specs and options.

Decides what the two supported versions need to build and run them on a CPU: what `fla` has kernels for is computed in
plain torch, the rule itself by megatron-core's own chunks. Must not know ranks or weights.
Source: fla-org/flash-linear-attention, fla/modules/{l2norm,convolution}.py (what is computed, not how).
"""

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from tests.worlds.centred_norm import CentredNorm
from tests.worlds.mamba_stub import NoRandomState
from tests.worlds.widths import Delta

SPECS = "megatron.core.models.gpt.experimental_attention_variant_module_specs"
NET = "megatron.core.ssm.gated_delta_net"  # a module in 0.16, a package of two in 0.19


def delta_options(delta: Delta) -> dict[str, Any]:
    """Options of TransformerConfig beside those of every family."""
    return {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [int(letter == "D") for letter in delta.pattern],
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_channels,
        "linear_value_head_dim": delta.value_channels,
        "linear_conv_kernel_dim": delta.kernel,
        "attention_output_gate": True,
    }


def with_delta_nets(layers: Sequence[Any], config: Any, *, te: bool, vp_stage: int | None) -> list[Any]:
    """Return a stage's layer specs, with a DeltaNet in place of attention where a layer has one."""
    install()
    net: Any = importlib.import_module(NET)
    found = [copy.deepcopy(layer) for layer in layers]  # they are one spec that stands there several times
    for number, layer in enumerate(found, get_transformer_layer_offset(config, vp_stage=vp_stage)):
        if not config.linear_attention_freq[number]:
            continue
        if te:
            backend = importlib.import_module("megatron.core.extensions.transformer_engine_spec_provider")
            specs: Any = importlib.import_module(SPECS)
            spec = specs.get_gated_delta_net_module_spec(config, backend=backend.TESpecProvider())
        else:
            parts = net.GatedDeltaNetSubmodules(ColumnParallelLinear, CentredNorm, RowParallelLinear)
            spec = ModuleSpec(module=net.GatedDeltaNet, submodules=parts)
        layer.submodules.self_attention = spec
    return found


def install() -> None:
    """Put plain torch where `fla` is missing. What torch would compile runs as it is: a CPU may have no compiler."""
    torch._dynamo.config.disable = True
    is_package = hasattr(importlib.import_module(NET), "__path__")
    for name in (f"{NET}.common", f"{NET}.gdn") if is_package else (NET,):
        module: Any = importlib.import_module(name)
        module.HAVE_FLA, module.l2norm, module.causal_conv1d = True, _l2norm, _convolution
        module.chunk_gated_delta_rule = module.torch_chunk_gated_delta_rule
        module.get_cuda_rng_tracker = NoRandomState


def _l2norm(values: torch.Tensor) -> torch.Tensor:
    return values * torch.rsqrt((values * values).sum(-1, keepdim=True) + 1e-6)


def _convolution(
    *, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **_ignored: object
) -> tuple[torch.Tensor, None]:
    """Convolve [batch, steps, channels] along steps, each channel for itself, and apply SiLU."""
    padded = torch.nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    mixed = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=len(weight))
    return torch.nn.functional.silu(mixed).transpose(1, 2), None
