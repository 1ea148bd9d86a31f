"""A family at a topology in megatron-core's words: the TransformerConfig and the layer specs.

Decides every option that the two supported versions need on a CPU. Must not know ranks or weights.
"""

from copy import copy, deepcopy
from typing import Any

import torch
from megatron.core.activations import fast_gelu, quick_gelu, squared_relu
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from tests.worlds.attention import CpuAttention
from tests.worlds.centred_norm import CentredNorm
from tests.worlds.delta_net import delta_options, with_delta_nets
from tests.worlds.families import Family
from tests.worlds.full_norms import FULL_NORMS, AttentionWithOwnNorms
from tests.worlds.gemma import add_norms
from tests.worlds.hybrid import hybrid_options
from tests.worlds.sparse import (
    sparse_block_spec,
    sparse_layer_specs,
    sparse_options,
    with_own_norms,
)
from tests.worlds.topology import Topology
from tests.worlds.widths import Experts, Latent, Steps

FUNCTIONS = {"gelu_tanh": fast_gelu, "relu2": squared_relu}
# by architecture, where it is not that of most
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "GptOssForCausalLM": {
        "activation_func": quick_gelu,
        "activation_func_clamp_value": 7.0,
        "glu_linear_offset": 1.0,
    }
}


def transformer_config(
    family: Family, topology: Topology, *, te: bool = False, dtype: torch.dtype = torch.bfloat16, **own: Any
) -> TransformerConfig:
    """Return the megatron config; with `te` the experts are grouped (TEGroupedMLP), else a SequentialMLP.

    `own` are options of TransformerConfig that win over those of the family, such as FP8 parameters.
    """
    options = _model_options(family) | _parallel_options(topology, dtype)
    options["transformer_impl"] = "transformer_engine" if te else "local"
    if family.experts is not None:
        _mend_router()
        options |= _expert_options(family.experts, family.layers) | {"moe_grouped_gemm": te}
    if family.mamba is not None:
        options |= hybrid_options(family.mamba, family.experts)
    if family.delta is not None:
        options |= delta_options(family.delta)
    options |= own
    if family.latent is None:
        config = TransformerConfig(**options, multi_latent_attention=False)
        if family.experts is not None and family.experts.score:
            # its constructor refuses a softmax with a bias, which published models have
            config.moe_router_score_function = family.experts.score
        return config
    _mend_latent_attention()
    if family.indexer is not None:
        options |= sparse_options(family.indexer, topology.tp)
    return MLATransformerConfig(**options | _latent_options(family.latent, family.rope_theta))


def block_spec(
    family: Family, config: TransformerConfig, *, te: bool = False, vp_stage: int | None = None
) -> Any:
    """Return the specs of the layers that this pipeline stage (and virtual stage) builds.

    The local attention core is always replaced (see `attention`), Transformer Engine's only with context
    parallelism, for which it creates a CUDA stream, and with sinks, which it allocates on a GPU.
    """
    if config.experimental_attention_variant == "dsa":
        return sparse_block_spec(config, te=te, vp_stage=vp_stage)
    plain = copy(config)
    plain.experimental_attention_variant = None  # 0.19 refuses it here
    spec = get_gpt_decoder_block_spec(
        plain,
        use_transformer_engine=te,
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
        vp_stage=vp_stage,
    )
    centred = _centred(config, te)
    if centred:
        spec.layer_norm = centred
    for layer in spec.layer_specs:
        _mend_attention(layer, config, te)
        if family.gemma:
            add_norms(layer, te=te)
        if family.full_norms:
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm, attention.k_layernorm = FULL_NORMS[family.full_norms]
        if family.full_norms == "beside":
            layer.submodules.self_attention.module = AttentionWithOwnNorms
    if family.plain_qk_norm:
        first = get_transformer_layer_offset(config, vp_stage=vp_stage)
        spec.layer_specs = [
            _without_norm(layer) if number in family.global_layers else layer
            for number, layer in enumerate(spec.layer_specs, first)
        ]
    if family.delta is not None:
        spec.layer_specs = with_delta_nets(spec.layer_specs, config, te=te, vp_stage=vp_stage)
    return spec


def _without_norm(layer: Any) -> Any:
    """Return a spec of a layer that norms neither queries nor keys. megatron-core gives alike layers the same one."""
    own = deepcopy(layer)
    own.submodules.self_attention.submodules.q_layernorm = IdentityOp
    own.submodules.self_attention.submodules.k_layernorm = IdentityOp
    return own


def mtp_spec(
    steps: Steps, config: TransformerConfig, *, te: bool = False, vp_stage: int | None = None
) -> Any:
    """Return the specs of the steps of multi-token prediction that this stage builds, None if it builds none.

    A step is built like the decoder's last layer, which another stage may hold: a layout can put steps by themselves.
    """
    if config.experimental_attention_variant == "dsa":
        last = sparse_layer_specs(config, te=te)[-1]
        spec = get_gpt_mtp_block_spec(config, last, use_transformer_engine=te, vp_stage=vp_stage)
        return spec if te else with_own_norms(spec)
    like = copy(config)
    like.experimental_attention_variant = None
    if steps.dense:
        like.num_moe_experts, like.moe_layer_freq = None, [0] * config.num_layers
    layer = get_gpt_decoder_layer_specs(
        like, use_transformer_engine=te, normalization="RMSNorm", vp_stage=vp_stage
    )[-1]
    _mend_attention(layer, config, te)
    spec = get_gpt_mtp_block_spec(config, layer, use_transformer_engine=te, vp_stage=vp_stage)
    for step in spec.layer_specs if spec is not None and _centred(config, te) else ():
        for norm in ("enorm", "hnorm", "layer_norm"):
            setattr(step.submodules, norm, _centred(config, te))
    return spec


def _centred(config: TransformerConfig, te: bool) -> Any:
    """Return the norm that stands for one with weights stored minus one in the local spec, None if there is none."""
    return CentredNorm if config.layernorm_zero_centered_gamma and not te else None


def _mend_attention(layer: Any, config: TransformerConfig, te: bool) -> None:
    attention, centred = layer.submodules.self_attention.submodules, _centred(config, te)
    if centred:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = centred
        if config.multi_latent_attention:
            attention.q_layernorm = attention.kv_layernorm = centred
        elif config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = centred
    if not te or config.context_parallel_size > 1 or config.softmax_type == "learnable":
        attention.core_attention = CpuAttention
    if config.multi_latent_attention and config.q_lora_rank is None and not te:
        attention.q_layernorm = IdentityOp  # 0.19 refuses a norm that would not be used; 0.16 ignores it


def _mend_router() -> None:
    """0.16 forgets to define this name when Transformer Engine is absent; its router asks `is not None`."""
    if not hasattr(moe_utils, "te_general_gemm"):
        setattr(moe_utils, "te_general_gemm", None)


def _mend_latent_attention() -> None:
    """Let the local spec build multi-latent attention where Transformer Engine is absent.

    0.16 holds TE for present in that module though its classes are mocks, and fails in isinstance. 0.19 wants
    norm and projection fused for a query without low rank, which the local spec does not have: take the plain
    projection, as the published checkpoints without q_lora have no query norm. With Transformer Engine 0.19
    does build that norm (`linear_q_proj.layer_norm_weight`), and no checkpoint holds it.
    """
    if not isinstance(multi_latent_attention.TELinear, type):
        setattr(multi_latent_attention, "HAVE_TE", False)
    resolver = getattr(multi_latent_attention, "QKNormConfigResolver", None)
    if resolver is not None:
        resolver._mla_fused_linear_or_default = _fused_linear_or_plain


def _fused_linear_or_plain(resolver: Any, module_spec: Any, _module_name: str) -> Any:
    """Stand for 0.19's `QKNormConfigResolver._mla_fused_linear_or_default`, which refuses the local spec."""
    return module_spec if resolver.fused_norm_linear_impl is None else resolver.fused_norm_linear_impl


def _model_options(family: Family) -> dict[str, Any]:
    return {
        "num_layers": family.layers,
        **_step_options(family.mtp),
        "hidden_size": family.hidden,
        "num_attention_heads": family.heads,
        "num_query_groups": family.groups,
        "kv_channels": family.head_channels,
        "ffn_hidden_size": family.dense_width,
        "qk_layernorm": family.qk_norm or bool(family.full_norms) or family.latent is not None,
        "qk_l2_norm": family.plain_qk_norm,
        "add_qkv_bias": family.qkv_bias,
        "rotary_interleaved": family.neighbours,
        **({"mrope_section": list(family.rope_sections)} if family.rope_sections else {}),
        "add_bias_linear": family.bias,
        **_windows(family),
        **({"softmax_type": "learnable"} if family.sinks else {}),
        "layernorm_epsilon": family.norm_eps,
        "normalization": family.norm.removesuffix("1P"),
        "layernorm_zero_centered_gamma": family.norm.endswith("1P"),
        "gated_linear_unit": family.is_gated,
        "activation_func": torch.nn.functional.silu if family.mamba is None else squared_relu,
        **({} if family.activation == "silu" else {"activation_func": FUNCTIONS[family.activation]}),
        **({"softmax_scale": family.gemma.scalar**-0.5} if family.gemma else {}),
        **ACTIVATIONS.get(family.architecture, {}),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        # kernels that exist on a GPU only
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }


def _windows(family: Family) -> dict[str, Any]:
    size: dict[str, Any] = {"window_size": (family.window - 1, 0)}
    seeing_all = [int(layer in family.global_layers) for layer in range(family.layers)]
    if not family.window:
        return {"no_rope_freq": seeing_all} if family.global_layers else {}
    if family.window_of_all:
        return size
    if not family.global_layers:
        return {**size, "window_attn_skip_freq": 2}
    of_steps = [1] * (family.mtp.predicted if family.mtp else 0)  # 0.16 counts steps as layers after the last
    windows = [1 - one for one in seeing_all] + of_steps
    return {**size, "window_attn_skip_freq": windows, "no_rope_freq": seeing_all}


def _step_options(mtp: Steps | None) -> dict[str, Any]:
    if mtp is None:
        return {}
    repeated = {"mtp_use_repeated_layer": True} if mtp.passes > 1 else {}  # 0.16 cannot
    return {"mtp_num_layers": mtp.predicted, **repeated}


def _parallel_options(topology: Topology, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": topology.tp,
        "pipeline_model_parallel_size": topology.pp,
        "virtual_pipeline_model_parallel_size": topology.vpp if topology.vpp > 1 else None,
        "expert_model_parallel_size": topology.ep,
        "expert_tensor_parallel_size": topology.etp,
        "context_parallel_size": topology.cp,
        "num_layers_in_first_pipeline_stage": topology.first_stage_layers,
        "num_layers_in_last_pipeline_stage": topology.last_stage_layers,
        "sequence_parallel": False,  # the torch norms of the local spec refuse it
        "use_cpu_initialization": True,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
    }


def _expert_options(experts: Experts, layers: int) -> dict[str, Any]:
    return {
        "num_moe_experts": experts.num_experts,
        "moe_router_topk": experts.top_k,
        "moe_ffn_hidden_size": experts.width,
        "moe_layer_freq": [int(experts.has_layer(layer)) for layer in range(layers)],
        "moe_apply_probs_on_input": experts.weighs_inputs,
        "moe_shared_expert_intermediate_size": experts.shared_width or None,
        "moe_shared_expert_gate": experts.shared_gate,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_router_pre_softmax": not experts.normalized,
        "moe_router_score_function": "sigmoid" if experts.router_bias else "softmax",
        "moe_router_enable_expert_bias": experts.router_bias,
        "moe_router_num_groups": experts.router_groups or None,
        "moe_router_group_topk": experts.groups_kept or None,
        "moe_router_topk_scaling_factor": experts.scaling if experts.scaling != 1 else None,
        "moe_token_dispatcher_type": "allgather",  # "alltoall" opens a CUDA stream in 0.19
    }


def _latent_options(latent: Latent, rope_theta: int) -> dict[str, Any]:
    return {
        "q_lora_rank": latent.query_rank or None,
        "kv_lora_rank": latent.key_value_rank,
        "qk_head_dim": latent.nope_channels,
        "qk_pos_emb_head_dim": latent.rope_channels,
        "v_head_dim": latent.value_channels,
        "rope_type": "rope",
        "rotary_base": rope_theta,
        "rotary_scaling_factor": 1.0,
        "apply_rope_fusion": False,
    }
