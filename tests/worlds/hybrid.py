"""Models whose layers are Mamba mixers, attention, dense MLPs or routed experts: their spec, options and class.

Decides what the two supported versions need to build them on a CPU: 0.16 calls the model MambaModel, 0.19
HybridModel, and both take Transformer Engine for granted in places. Must not know ranks or weights.
"""

import copy
import importlib
import importlib.util
from collections.abc import Sequence
from itertools import islice
from typing import Any

from megatron.core import parallel_state
from megatron.core.activations import squared_relu
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.post_training.modelopt.layers import Linear
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from tests.worlds import mamba_stub
from tests.worlds.attention import CpuAttention
from tests.worlds.widths import Experts, Mamba, Steps

mamba_stub.install()  # before anything asks for the mixer

IS_HYBRID = importlib.util.find_spec("megatron.core.models.hybrid") is not None
STACK = "megatron.core.models.hybrid.hybrid_block" if IS_HYBRID else "megatron.core.ssm.mamba_block"
SPECS = (
    "megatron.core.models.hybrid.hybrid_layer_specs"
    if IS_HYBRID
    else "megatron.core.models.mamba.mamba_layer_specs"
)


def hybrid_options(mamba: Mamba, experts: Experts | None) -> dict[str, Any]:
    """Options of TransformerConfig beside those of every family."""
    return {
        "is_hybrid_model": True,
        "gated_linear_unit": False,
        "activation_func": squared_relu,
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.head_channels,
        "mamba_num_groups": mamba.groups,
        "mamba_state_dim": mamba.state,
        "moe_layer_freq": 1,
        "moe_latent_size": (experts.latent_width or None) if experts else None,
    }


def hybrid_model(
    mamba: Mamba,
    mtp: Steps | None,
    config: Any,
    *,
    te: bool,
    stage_layers: Sequence[int] = (),
    vp_stage: int | None = None,
    **options: Any,
) -> Any:
    """The model of this rank and virtual stage; `options` as for a GPTModel.

    Raises ValueError for what 0.16 does not build: steps of MTP, and stages laid out by hand, as virtual ones must be.
    """
    _mend()
    if IS_HYBRID:
        model: Any = importlib.import_module("megatron.core.models.hybrid.hybrid_model").HybridModel
        own = {
            "hybrid_stack_spec": _spec(config, te=te),
            "hybrid_layer_pattern": _whole_pattern(mamba, mtp, stage_layers),
            "vp_stage": vp_stage,
        }
    elif mtp is not None or stage_layers:
        raise ValueError(
            "megatron-core 0.16 builds no hybrid model with multi-token prediction or such stages"
        )
    else:
        model = importlib.import_module("megatron.core.models.mamba.mamba_model").MambaModel
        own = {"mamba_stack_spec": _spec(config, te=te), "hybrid_override_pattern": mamba.pattern}
    return model(config, **own, **options, position_embedding_type="none")


def _whole_pattern(mamba: Mamba, mtp: Steps | None, stage_layers: Sequence[int]) -> str:
    """As 0.19 spells it: letters of the decoder, a bar between stages, then those of each step after a slash."""
    letters = iter(mamba.pattern)
    stages = ["".join(islice(letters, layers)) for layers in stage_layers]
    decoder = "|".join(stages) if stages else mamba.pattern
    return "/".join([decoder, *([mtp.pattern] * mtp.predicted if mtp else [])])


def _spec(config: Any, *, te: bool) -> Any:
    """Transformer Engine's own, or the local one that megatron-core has for Model-Optimizer, with torch's norms."""
    if te:
        specs: Any = importlib.import_module(SPECS)
        spec = copy.deepcopy(specs.hybrid_stack_spec if IS_HYBRID else specs.mamba_stack_spec)
    else:
        local: Any = importlib.import_module("megatron.core.post_training.modelopt.mamba.model_specs")
        spec = local.get_mamba_stack_modelopt_spec(local_core_attention=True)
        spec.submodules.mamba_layer.submodules.norm = WrappedTorchNorm
        spec.submodules.attention_layer.submodules.input_layernorm = WrappedTorchNorm
        spec.submodules.mlp_layer.submodules.pre_mlp_layernorm = WrappedTorchNorm
        spec.submodules.moe_layer.submodules.pre_mlp_layernorm = WrappedTorchNorm
        steps = getattr(spec.submodules, "mtp_block_spec", None)
        for step in steps.submodules.layer_specs if steps else ():
            for norm in ("enorm", "hnorm", "layer_norm"):
                setattr(step.submodules, norm, WrappedTorchNorm)
    if not te or config.context_parallel_size > 1:
        attention = spec.submodules.attention_layer.submodules.self_attention.submodules
        attention.core_attention = CpuAttention
    return spec


def _mend() -> None:
    """Without Transformer Engine: the final norm and the latent projections name its classes, whatever the spec."""
    if HAVE_TE:
        return
    setattr(importlib.import_module(STACK), "TENorm", WrappedTorchNorm)
    setattr(moe_layer, "HAVE_TE", True)
    setattr(moe_layer, "TELinear", projection)


def projection(*sizes: int, parallel_mode: str, **options: Any) -> Any:
    """megatron-core's own replacement of a parallel linear; for what all ranks hold it does not say who they are."""
    assert parallel_mode == "duplicated"
    linear = Linear(*sizes, **options)
    linear.tp_group = parallel_state.get_tensor_model_parallel_group()
    return linear
