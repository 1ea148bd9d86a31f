"""Latent attention that an indexer makes sparse: its layer specs, which megatron-core has for Transformer Engine only.

Decides what the local spec needs to be built on a CPU. The indexer of 0.16 rotates other channels and is not built.
Must not know ranks or weights.
"""

import importlib
import importlib.util
from typing import Any

from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from tests.worlds.hybrid import projection
from tests.worlds.widths import Indexer

SPECS = "megatron.core.models.gpt.experimental_attention_variant_module_specs"
HAS_SPARSE = (
    importlib.util.find_spec("megatron.core.transformer.experimental_attention_variant") is not None
    and importlib.util.find_spec("megatron.core.models.hybrid") is not None
)


def sparse_options(indexer: Indexer, tp_size: int) -> dict[str, Any]:
    """Options of TransformerConfig beside those of latent attention. Over ranks it insists on sequence parallelism."""
    return {
        "experimental_attention_variant": "dsa",
        "dsa_indexer_n_heads": indexer.heads,
        "dsa_indexer_head_dim": indexer.channels,
        "dsa_indexer_topk": indexer.top_k,
        "dsa_indexer_rope_interleaved": indexer.interleaved,
        "dsa_indexer_k_norm_epsilon": 1e-6,
        "dsa_indexer_rotate_activation": False,  # a kernel that exists on a GPU only
        "sequence_parallel": tp_size > 1,
        "cp_comm_type": "allgather",
    }


def sparse_block_spec(config: Any, *, te: bool, vp_stage: int | None) -> Any:
    """Return the specs of the layers that this stage builds."""
    specs: Any = importlib.import_module(SPECS)
    if te:
        return specs.get_transformer_block_with_experimental_attention_variant_spec(config, vp_stage=vp_stage)
    layers = sparse_layer_specs(config)
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    held = layers[first : first + get_num_layers_to_build(config, vp_stage=vp_stage)]
    return TransformerBlockSubmodules(layer_specs=held, layer_norm=_Norm)


def sparse_layer_specs(config: Any, *, te: bool = False) -> Any:
    """Return the specs of all layers of the decoder."""
    specs: Any = importlib.import_module(SPECS)
    if te:
        return specs.get_transformer_layer_with_experimental_attention_variant_spec(config)
    layers = specs.get_transformer_layer_with_experimental_attention_variant_spec(config, backend=_Local())
    for layer in layers:
        indexer = layer.submodules.self_attention.submodules.core_attention.submodules.indexer.submodules
        indexer.linear_wq_b = indexer.linear_wk = indexer.linear_weights_proj = _Projection
    return layers


def with_own_norms(steps: Any) -> Any:
    """Return the specs of steps of multi-token prediction, None for none, with norms that take sequence parallelism."""
    for step in steps.layer_specs if steps is not None else ():
        for norm in ("enorm", "hnorm", "layer_norm"):
            setattr(step.submodules, norm, _Norm)
    return steps


class _Local(LocalSpecProvider):
    """Local modules where the specs ask for Transformer Engine's."""

    def linear(self) -> Any:
        return ColumnParallelLinear

    def layer_norm(self, *_args: Any, **_kwargs: Any) -> Any:
        return _Norm


class _Norm:
    """Torch's norm, which refuses a config with sequence parallelism though it is built the same."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_options: Any) -> Any:
        was, config.sequence_parallel = config.sequence_parallel, False
        try:
            return WrappedTorchNorm(config, hidden_size, eps)
        finally:
            config.sequence_parallel = was


class _Projection:
    """A linear that all ranks hold. It is a class, as megatron-core takes a function for a module that is built."""

    def __new__(cls, *sizes: int, **options: Any) -> Any:
        return projection(*sizes, **options)
