"""Every field of megatron-core's configs is classed once, and what is refused stops a dump by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import megatron.core
import pytest
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from shardmerge.common.architectures.settings.vocabulary import SETTINGS
from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.phase1_dump.settings.fields import (
    COMPARED,
    HARMLESS,
    KNOWN,
    REFUSED,
    UNREAD,
    refusals,
    unknown_fields,
)
from tests.phase1_dump.conftest import References
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

INSTALLED = {
    field.name: field for kind in (TransformerConfig, MLATransformerConfig) for field in fields(kind)
}
CONFIG_MODULES = ("transformer/transformer_config.py", "model_parallel_config.py")
# what the table has for one tested version of megatron-core and another does not know
ONLY_016 = """
    async_tensor_model_parallel_allreduce moe_extended_tp moe_use_legacy_grouped_gemm
"""
ONLY_019 = """
    activation_offload_fraction cpu_offloading_retain_pinned_cpu_buffers cuda_graph_modules
    delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks dsa_indexer_k_norm_epsilon
    dsa_indexer_k_norm_fp32 dsa_indexer_rope_interleaved dsa_indexer_rotate_activation dsa_indexer_scoring_relu
    dsa_indexer_skip_topk_offset dsa_indexer_topk_freq dsa_kernel_backend
    experimental_attention_variant_loss_scale_func expert_gtp_weight_remat_size
    expert_tensor_parallel_num_weight_shards fine_grained_offloading_max_inflight_offloads
    flash_attention_version fp8_output_proj fused_residual_rmsnorm gtp_weight_remat_size
    high_priority_a2a_comm_stream inference_cuda_graph_scope inference_disable_triton_nvls_kernels
    inference_grouped_gemm_backend inference_moe_disable_fused_quant_kernels inference_moe_token_dispatcher_type
    mamba_training_ssm_states_dtype mla_down_proj_fusion mlp_chunks_for_training moe_expert_rank_capacity_factor
    moe_flex_dispatcher_num_sms moe_grad_scale_func moe_hybridep_num_blocks_permute
    moe_hybridep_num_blocks_unpermute moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs
    moe_mlp_glu_interleave_size moe_ncclep_static_shape moe_ncclep_zero_copy
    moe_pad_experts_for_cuda_graph_inference moe_paged_stash moe_paged_stash_buffer_size_factor_cpu
    moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_page_size moe_permute_fusion_into_hybridep
    moe_router_force_biased moe_router_quantile_balancing_ema moe_shared_expert_glu_interleave_size
    moe_single_grouped_bias moe_single_grouped_weight mtp_detach_heads mtp_grad_scale_func
    mtp_hybrid_override_pattern mtp_use_repeated_layer mup_attn_scale_power mup_base_head_dim
    mup_base_hidden_size mup_embedding_mult mup_output_mult mup_width_mult nccl_all_reduce_for_prefill
    overlap_dispatch_backward_with_experts_wgrad tensor_parallel_num_weight_shards
    use_grouped_gemm_for_dense_mlp use_grouped_gemm_for_shared_expert use_mup use_transformer_engine_op_fuser
"""
# tested version -> fields of the table that it does not have
ABSENT = {"0.16": set(ONLY_019.split()), "0.19": set(ONLY_016.split())}
NOT_FINE: dict[str, object] = {
    "moe_mlp_glu_interleave_size": 32,
    "moe_shared_expert_glu_interleave_size": 32,
    "heterogeneous_block_specs": True,
    "moe_router_load_balancing_type": "sinkhorn",
    "moe_router_force_load_balancing": True,
    "moe_router_force_biased": 0.1,
    "dsa_indexer_rope_interleaved": True,
    "dsa_indexer_scoring_relu": False,
    "dsa_indexer_k_norm_epsilon": 1e-6,
}


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        yield build_model(by_name("llama"), SINGLE)[0]


def test_every_field_of_the_installed_megatron_core_is_in_the_table() -> None:
    """A new field is either compared, or harmless for a reason that its readers' code shows, or refused."""
    assert sorted(set(INSTALLED) - KNOWN) == []


def test_no_field_is_in_the_table_twice() -> None:
    names = [*COMPARED, *REFUSED, *(name for group in HARMLESS for name in group.fields)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_what_the_installed_megatron_core_does_not_have_another_tested_version_has() -> None:
    version = ".".join(megatron.core.__version__.split(".")[:2])
    assert sorted(KNOWN - set(INSTALLED)) == sorted(ABSENT[version])


def test_every_setting_that_a_field_decides_is_in_the_vocabulary() -> None:
    assert {setting for settings in COMPARED.values() for setting in settings} - set(SETTINGS) == set()
    assert [field for field, settings in COMPARED.items() if not settings] == []


def test_every_reason_is_a_sentence() -> None:
    assert [group.reason for group in HARMLESS if not re.fullmatch(r"[A-Z].*\.", group.reason)] == []


def test_no_code_of_megatron_core_names_a_field_that_is_said_to_be_unread() -> None:
    """The modules that define it may: but there too nothing takes it from a config."""
    root = Path(megatron.core.__path__[0])
    anywhere = re.compile(rf"\b(?:{'|'.join(UNREAD.fields)})\b")
    of_itself = re.compile(rf"self\.(?:{'|'.join(UNREAD.fields)})\b")
    found = [
        f"{path.relative_to(root)}: {match.group()}"
        for path in sorted(root.rglob("*.py"))
        for pattern in (of_itself if path.relative_to(root).as_posix() in CONFIG_MODULES else anywhere,)
        for match in pattern.finditer(path.read_text())
    ]
    assert found == []


def test_a_default_of_megatron_core_is_never_refused() -> None:
    defaults = {name: INSTALLED[name].default for name in REFUSED if name in INSTALLED}

    assert MISSING not in defaults.values()
    assert refusals(SimpleNamespace(**defaults)) == []


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_that_is_not_fine_is_refused_by_name(
    field: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    setattr(model.config, field, NOT_FINE[field])

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith(f"{field}={NOT_FINE[field]} on rank 0: {REFUSED[field].effect}, of which no")
    assert "LlamaForCausalLM" in message


def test_of_a_list_each_element_must_be_fine() -> None:
    field = "moe_router_load_balancing_type"
    assert refusals(SimpleNamespace(moe_router_load_balancing_type=["aux_loss", "seq_aux_loss"])) == []

    ((name, value, effect),) = refusals(
        SimpleNamespace(moe_router_load_balancing_type=["aux_loss", "sinkhorn"])
    )

    assert (name, value, effect) == (field, ["aux_loss", "sinkhorn"], REFUSED[field].effect)


def test_a_config_that_has_none_of_the_fields_is_not_refused() -> None:
    assert refusals(object()) == []


def test_fields_of_a_callers_subclass_are_listed_in_their_order() -> None:
    @dataclass
    class Provider(TransformerConfig):
        vocab_size: int = 32000
        make_vocab_size_divisible_by: int = 128

    provider = Provider(num_layers=1, hidden_size=8, num_attention_heads=1)

    assert unknown_fields(provider) == ("vocab_size", "make_vocab_size_divisible_by")
    assert unknown_fields(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)) == ()


def test_a_config_that_is_not_a_dataclass_has_no_unknown_fields() -> None:
    assert unknown_fields(SimpleNamespace(num_layers=1, vocab_size=32000)) == ()
