"""Every field of TransformerConfig and MLATransformerConfig: it is compared, harmless or refused.

Of megatron-core 0.16.1 and 0.19.2; a test fails by name for a field of a newer one that is not here. Must not know
torch or megatron-core: a config is any object with attributes.
Source: megatron/core, transformer/transformer_config.py, model_parallel_config.py, and all code that reads a field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

# field -> settings of the vocabulary that it decides, alone or with other fields
COMPARED: Final[dict[str, tuple[str, ...]]] = {
    # attention
    "num_attention_heads": ("attention_heads",),
    "num_query_groups": ("key_value_heads",),
    "kv_channels": ("head_dim", "softmax_scale"),
    "softmax_scale": ("softmax_scale",),
    "softmax_type": ("attention_sink",),
    "attention_output_gate": ("attention_gate",),
    "qk_l2_norm": ("query_key_norm", "query_key_norm_without_rope"),
    "window_size": ("sliding_windows",),
    "window_attn_skip_freq": ("sliding_windows",),
    "no_rope_freq": ("layers_without_rope", "query_key_norm_without_rope"),
    "mrope_section": ("rope_sections",),
    "rotary_interleaved": ("rope_interleaved",),
    "experimental_attention_variant": ("attention_variant",),
    "linear_attention_freq": ("linear_attention_layers",),
    # latent attention, where the config and not the model's arguments say how it rotates
    "multi_latent_attention": ("rope_interleaved",),
    "q_lora_rank": ("query_latent",),
    "kv_lora_rank": ("key_value_latent",),
    "qk_head_dim": ("nope_head_dim", "softmax_scale"),
    "qk_pos_emb_head_dim": ("rope_head_dim", "rope_frequencies", "softmax_scale"),
    "v_head_dim": ("value_head_dim",),
    "rope_type": ("rope_frequencies", "rope_factor"),
    "rotary_base": ("rope_frequencies",),
    "rotary_percent": ("rope_frequencies",),
    "rotary_scaling_factor": ("rope_frequencies", "rope_factor", "softmax_scale"),
    "original_max_position_embeddings": ("rope_frequencies",),
    "beta_fast": ("rope_frequencies",),
    "beta_slow": ("rope_frequencies",),
    "mscale": ("rope_factor",),
    "mscale_all_dim": ("rope_factor", "softmax_scale"),
    # norms
    "normalization": ("norm",),
    "layernorm_zero_centered_gamma": ("zero_centred_norms",),
    "layernorm_epsilon": ("norm_eps", "latent_norm_eps"),
    # feed-forward; kernels compute GELU with tanh, and those of SwiGLU know no clamp
    "activation_func": ("activation",),
    "gated_linear_unit": ("gated",),
    "activation_func_clamp_value": ("activation_clamp",),
    "glu_linear_offset": ("gate_offset",),
    "bias_activation_fusion": ("activation", "activation_clamp"),
    "use_te_activation_func": ("activation", "activation_clamp", "gate_offset"),
    "use_transformer_engine_op_fuser": ("activation_clamp", "gate_offset"),
    "moe_latent_size": ("moe_latent",),
    "moe_shared_expert_gate": ("shared_expert_gate",),
    # router
    "moe_router_topk": ("experts_per_token", "router_normalized", "router_group_score"),
    "moe_router_score_function": ("router_score", "router_normalized"),
    "moe_router_pre_softmax": ("router_normalized",),
    "moe_router_topk_scaling_factor": ("router_scaling",),
    "moe_router_num_groups": ("router_groups",),
    "moe_router_group_topk": ("router_groups", "router_group_score"),
    "moe_router_enable_expert_bias": ("router_bias",),
    "moe_apply_probs_on_input": ("router_weights_input",),
    # Mamba, DeltaNet and sparse attention
    "mamba_num_heads": ("mamba_heads",),
    "mamba_head_dim": ("mamba_head_dim",),
    "mamba_num_groups": ("mamba_groups",),
    "mamba_state_dim": ("mamba_state",),
    "linear_num_key_heads": ("delta_key_heads",),
    "linear_num_value_heads": ("delta_value_heads",),
    "linear_key_head_dim": ("delta_key_dim",),
    "linear_value_head_dim": ("delta_value_dim",),
    "linear_conv_kernel_dim": ("delta_kernel",),
    "dsa_indexer_n_heads": ("indexer_heads",),
    "dsa_indexer_head_dim": ("indexer_head_dim",),
    "dsa_indexer_topk": ("indexer_top_k",),
    "dsa_indexer_rope_interleaved": ("indexer_rope_interleaved", "indexer_rope_first"),
    "dsa_indexer_k_norm_epsilon": ("indexer_norm_eps",),
    # embeddings and multi-token prediction
    "use_mup": ("embedding_scale", "logit_scale"),
    "mup_embedding_mult": ("embedding_scale",),
    "mup_output_mult": ("logit_scale",),
    "mtp_num_layers": ("mtp_steps",),
    "mtp_use_repeated_layer": ("mtp_steps",),
}


@dataclass(frozen=True, slots=True)
class Harmless:
    """Fields that may have any value.

    Attributes:
        reason: Why a checkpoint does not depend on them, as a sentence.
        fields: Their names.
    """

    reason: str
    fields: tuple[str, ...]


def _harmless(reason: str, names: str) -> Harmless:
    return Harmless(reason, tuple(names.split()))


UNREAD: Final = _harmless(
    "No code of megatron-core reads it.",
    """
    apply_residual_connection_post_layernorm async_tensor_model_parallel_allreduce moe_extended_tp moe_per_layer_logging
    moe_token_dropping mtp_hybrid_override_pattern tp_comm_bootstrap_backend use_inference_optimized_layers
    """,
)
HARMLESS: Final[tuple[Harmless, ...]] = (
    UNREAD,
    _harmless(
        "Shows as parameters, whose keys, shapes and types are compared.",
        """
        num_layers hidden_size ffn_hidden_size add_bias_linear add_qkv_bias qk_layernorm mla_down_proj_fusion
        num_moe_experts moe_layer_freq moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_grouped_gemm
        moe_use_legacy_grouped_gemm moe_single_grouped_weight moe_single_grouped_bias use_grouped_gemm_for_dense_mlp
        use_grouped_gemm_for_shared_expert dsa_indexer_topk_freq dsa_indexer_skip_topk_offset fp8_param fp4_param
        """,
    ),
    _harmless(
        "Is turned into other fields when a config is made, and those are classed here.",
        """
        mup_base_hidden_size mup_width_mult mup_base_head_dim mup_attn_scale_power moe_router_topk_limited_devices
        moe_router_padding_for_fp8
        """,
    ),
    _harmless(
        "Decides how parameters are initialised.",
        """
        perform_initialization use_cpu_initialization init_method output_layer_init_method init_method_std
        embedding_init_method embedding_init_method_std init_model_with_meta_device is_hybrid_model
        """,
    ),
    _harmless(
        "Decides how the work is spread over ranks.",
        """
        tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size sequence_parallel
        context_parallel_size hierarchical_context_parallel_sizes hybrid_context_parallel max_seqlen_per_dp_cp_rank
        cp_comm_type expert_model_parallel_size expert_tensor_parallel_size num_layers_in_first_pipeline_stage
        num_layers_in_last_pipeline_stage pipeline_model_parallel_layout account_for_embedding_in_pipeline_split
        account_for_loss_in_pipeline_split mtp_standalone microbatch_group_size_per_vp_stage
        """,
    ),
    _harmless(
        "Splits weights over more ranks, which `sources.refusals` refuses.",
        """
        gtp_weight_remat_size expert_gtp_weight_remat_size tensor_parallel_num_weight_shards
        expert_tensor_parallel_num_weight_shards
        """,
    ),
    _harmless(
        "Decides how and when ranks talk to each other.",
        """
        pipeline_model_parallel_comm_backend variable_seq_lengths overlap_p2p_comm overlap_p2p_comm_warmup_flush
        batch_p2p_comm batch_p2p_sync use_ring_exchange_p2p tp_comm_overlap tp_comm_bulk_wgrad tp_comm_bulk_dgrad
        tp_comm_overlap_ag tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_atomic_ag
        tp_comm_split_rs tp_comm_atomic_rs tp_comm_overlap_disable_qkv tp_comm_overlap_disable_fc1
        overlap_moe_expert_parallel_comm overlap_dispatch_backward_with_experts_wgrad high_priority_a2a_comm_stream
        moe_shared_expert_overlap moe_token_dispatcher_type moe_enable_deepep moe_flex_dispatcher_backend
        moe_flex_dispatcher_num_sms moe_deepep_num_sms moe_hybridep_num_sms moe_hybridep_num_sms_preprocessing
        moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute moe_hybridep_pad_uneven_dispatch_inputs
        moe_permute_fusion_into_hybridep moe_ncclep_static_shape moe_ncclep_zero_copy symmetric_ar_type
        nccl_all_reduce_for_prefill inference_moe_token_dispatcher_type inference_disable_triton_nvls_kernels
        """,
    ),
    _harmless(
        "Is about training only: the loss, its gradient, or what is dropped at random.",
        """
        hidden_dropout attention_dropout calculate_per_token_loss mtp_loss_scaling_factor mtp_detach_heads
        moe_aux_loss_coeff moe_z_loss_coeff moe_router_bias_update_rate moe_router_quantile_balancing_ema
        dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss experimental_attention_variant_loss_scale_func
        qk_clip qk_clip_alpha qk_clip_threshold grad_scale_func moe_grad_scale_func mtp_grad_scale_func
        finalize_model_grads_func no_sync_func grad_sync_func param_sync_func cross_entropy_loss_fusion
        cross_entropy_fusion_impl gradient_accumulation_fusion delay_wgrad_compute defer_embedding_wgrad_compute
        wgrad_deferral_limit fp8_wgrad activation_func_fp8_input_store
        """,
    ),
    _harmless(
        "Adds noise to what the router sees, or lets a caller hand in its choices: no checkpoint can mean that.",
        "moe_input_jitter_eps moe_enable_routing_replay",
    ),
    _harmless(
        "Drops tokens where a batch overfills an expert, which depends on the batch and not on the weights.",
        """
        moe_expert_capacity_factor moe_pad_expert_input_to_capacity moe_token_drop_policy
        moe_expert_rank_capacity_factor
        """,
    ),
    _harmless(
        "Is the precision of the same function.",
        """
        fp16 bf16 params_dtype pipeline_dtype enable_autocast autocast_dtype disable_bf16_reduced_precision_matmul
        fp32_residual_connection apply_query_key_layer_scaling attention_softmax_in_fp32 moe_router_dtype
        mamba_training_ssm_states_dtype dsa_indexer_k_norm_fp32 dsa_indexer_rotate_activation fp8 fp8_recipe
        fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len fp8_amax_compute_algo fp8_output_proj
        fp8_dot_product_attention fp8_multi_head_attention tp_only_amax_red first_last_layers_bf16
        num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 fp4 fp4_recipe fp4_quantizer_factory use_kitchen
        quant_recipe moe_router_padding_for_quantization
        """,
    ),
    _harmless(
        "Chooses a kernel of the same function.",
        """
        transformer_impl attention_backend flash_attention_version flash_decode batch_invariant_mode deterministic_mode
        masked_softmax_fusion persist_layer_norm memory_efficient_layer_norm bias_dropout_fusion apply_rope_fusion
        fused_single_qkv_rope fused_residual_rmsnorm use_fused_weighted_squared_relu moe_permute_fusion
        moe_router_fusion use_kitchen_attention kitchen_attention_backend dsa_kernel_backend use_mamba_mem_eff_path
        mlp_chunks_for_prefill mlp_chunks_for_training cache_mla_latents clone_scatter_output_in_embedding
        inference_fuse_tp_communication inference_grouped_gemm_backend inference_moe_disable_fused_quant_kernels
        moe_pad_experts_for_cuda_graph_inference
        """,
    ),
    _harmless(
        "Decides what is kept in memory, what is computed again, and what a CUDA graph holds.",
        """
        recompute_granularity recompute_method recompute_num_layers recompute_modules moe_layer_recompute
        distribute_saved_activations num_microbatches_with_partial_activation_checkpoints deallocate_pipeline_outputs
        ep_overlap_early_attn_memory_release disable_parameter_transpose_cache cpu_offloading cpu_offloading_num_layers
        cpu_offloading_activations cpu_offloading_weights cpu_offloading_double_buffering
        cpu_offloading_retain_pinned_cpu_buffers _cpu_offloading_context fine_grained_activation_offloading
        fine_grained_offloading_max_inflight_offloads offload_modules min_offloaded_tensor_size
        delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks activation_offload_fraction moe_paged_stash
        moe_paged_stash_page_size moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_buffer_size_factor_cpu
        enable_cuda_graph external_cuda_graph cuda_graph_impl cuda_graph_modules cuda_graph_scope
        inference_cuda_graph_scope cuda_graph_use_single_mempool cuda_graph_retain_backward_graph
        cuda_graph_warmup_steps
        """,
    ),
    _harmless(
        "Measures, logs or draws random numbers.",
        """
        timers barrier_with_L1_time config_logger_dir log_max_attention_logit test_mode use_te_rng_tracker
        inference_rng_tracker inference_sampling_seed
        """,
    ),
    _harmless(
        "Decides how megatron-core numbers layers in a checkpoint of its own, and both ways are read.",
        "hetereogenous_dist_checkpoint",
    ),
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is refused unless its value is fine.

    Attributes:
        fine: Its fine values. Where it is a list, each of its elements must be one.
        effect: What another value does, of which no config.json speaks, as a clause.
    """

    fine: tuple[Any, ...]
    effect: str


REFUSED: Final[dict[str, Refused]] = {
    "moe_mlp_glu_interleave_size": Refused((None,), "rows of gate and up alternate in the experts' fc1"),
    "moe_shared_expert_glu_interleave_size": Refused(
        (None,), "rows of gate and up alternate in the shared experts' fc1"
    ),
    "heterogeneous_block_specs": Refused((False,), "each layer has a config of its own"),
    # sinkhorn takes the sigmoid (of one expert) or the softmax of all logits, and ignores groups, bias and scaling;
    # quantile_balancing adds a bias of its own. What the router does not know, as Megatron-Bridge's noaux_tc, is top-k
    "moe_router_load_balancing_type": Refused(
        ("aux_loss", "seq_aux_loss", "global_aux_loss", "none", "noaux_tc"),
        "the router chooses and weighs experts by a rule of its own",
    ),
    "moe_router_force_load_balancing": Refused((False,), "the router's logits are random numbers"),
    "moe_router_force_biased": Refused((None,), "random numbers are added to the router's logits"),
    "dsa_indexer_scoring_relu": Refused((True,), "scores of the indexer may be negative"),
}
KNOWN: Final = frozenset({*COMPARED, *REFUSED, *(name for group in HARMLESS for name in group.fields)})


def refusals(config: Any) -> list[tuple[str, Any, str]]:
    """Return what of a model's config keeps it from being written.

    Args:
        config: A TransformerConfig, or whatever a caller has in its place.

    Returns:
        Of each field of `REFUSED` that has a value which is not fine: its name, the value, the effect.
    """
    return [
        (field, getattr(config, field), row.effect)
        for field, row in REFUSED.items()
        if hasattr(config, field) and not _is_fine(getattr(config, field), row.fine)
    ]


def _is_fine(value: Any, fine: tuple[Any, ...]) -> bool:
    return all(one in fine for one in (value if isinstance(value, list | tuple) else (value,)))


def differing(config: Any, other: Any) -> list[str]:
    """Return the fields that are compared in which a module's own config is not that of the model."""
    return [
        field
        for field in COMPARED
        if hasattr(config, field)
        and hasattr(other, field)
        and getattr(config, field) != getattr(other, field)
    ]


def unknown_fields(config: Any) -> tuple[str, ...]:
    """Return the fields of a config's own class that are not classed here, in their order.

    Args:
        config: A TransformerConfig, or an instance of a caller's subclass with fields of its own. Others have none.
    """
    if not dataclasses.is_dataclass(config):
        return ()
    return tuple(field.name for field in dataclasses.fields(config) if field.name not in KNOWN)
