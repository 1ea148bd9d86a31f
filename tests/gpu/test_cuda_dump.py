"""A Transformer Engine model on a CUDA device, dumped: bytes, memory, and the refusal of FP8 storage.

Needs one GPU, megatron-core and Transformer Engine with its kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

pytestmark = pytest.mark.gpu

WAYS = ("dump", "beside training", "beside training with little memory")
LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, WIDTH, EXPERTS, VOCAB = 2, 768, 8, 2, 128, 512, 8, 1000
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HEAD_DIM,
    "intermediate_size": 1024, "moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}  # fmt: skip


def build(**options: Any) -> Any:
    """A GPTModel of the Transformer Engine spec, grouped experts, random weights, on the device."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=HIDDEN, num_attention_heads=HEADS, num_query_groups=GROUPS,
        kv_channels=HEAD_DIM, ffn_hidden_size=1024, moe_ffn_hidden_size=WIDTH, num_moe_experts=EXPERTS,
        moe_router_topk=2, moe_grouped_gemm=True, qk_layernorm=True, add_bias_linear=False, gated_linear_unit=True,
        activation_func=torch.nn.functional.silu, normalization="RMSNorm", bf16=True, params_dtype=torch.bfloat16,
        gradient_accumulation_fusion=False, bias_activation_fusion=False, **options,
    )  # fmt: skip
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=True)
    padded = 1024
    model = GPTModel(
        config, spec, vocab_size=padded, max_sequence_length=64, position_embedding_type="rope"
    ).cuda()
    if not options:
        for parameter in model.parameters():
            parameter.data.normal_()
    return model


def expected(model: Any) -> dict[str, torch.Tensor]:
    """Hugging Face tensors of the model, cut by hand with torch."""
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor) and v.numel()}
    found = {"model.embed_tokens.weight": state["embedding.word_embeddings.weight"][:VOCAB]}
    found |= {"lm_head.weight": state["output_layer.weight"][:VOCAB]}
    found |= {"model.norm.weight": state["decoder.final_layernorm.weight"]}
    for layer in range(LAYERS):
        mcore, hf = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        attention = mcore + "self_attention."
        fused = state[attention + "linear_qkv.weight"].view(GROUPS, HEADS // GROUPS + 2, HEAD_DIM, HIDDEN)
        found[hf + "self_attn.q_proj.weight"] = fused[:, :-2].reshape(-1, HIDDEN)
        found[hf + "self_attn.k_proj.weight"] = fused[:, -2].reshape(-1, HIDDEN)
        found[hf + "self_attn.v_proj.weight"] = fused[:, -1].reshape(-1, HIDDEN)
        found[hf + "self_attn.o_proj.weight"] = state[attention + "linear_proj.weight"]
        found[hf + "self_attn.q_norm.weight"] = state[attention + "q_layernorm.weight"]
        found[hf + "self_attn.k_norm.weight"] = state[attention + "k_layernorm.weight"]
        found[hf + "input_layernorm.weight"] = state[attention + "linear_qkv.layer_norm_weight"]
        found[hf + "post_attention_layernorm.weight"] = state[mcore + "pre_mlp_layernorm.weight"]
        found[hf + "mlp.gate.weight"] = state[mcore + "mlp.router.weight"]
        for expert in range(EXPERTS):
            fc1 = state[f"{mcore}mlp.experts.linear_fc1.weight{expert}"]
            experts = f"{hf}mlp.experts.{expert}."
            found[experts + "gate_proj.weight"], found[experts + "up_proj.weight"] = fc1[:WIDTH], fc1[WIDTH:]
            found[experts + "down_proj.weight"] = state[f"{mcore}mlp.experts.linear_fc2.weight{expert}"]
    return {name: tensor.cpu() for name, tensor in found.items()}


def dumped(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a one-rank dump."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("rank-00000/*.safetensors")):
        with safe_open(file, "pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}
    return found


def write(way: str, model: Any, out: Path, reference: Path, **options: Any) -> None:
    """Dump at once, or beside training through as much memory as the rank has, or through little of it."""
    from shardmerge.phase1_dump import dump, dump_async

    given: dict[str, Any] = {"hf_reference": reference, "run_id": "gpu", "step": 1} | options
    if way == "dump":
        dump(model, out, **given)
    else:
        dump_async(model, out, host_bytes=300_000 if "little" in way else None, **given).wait()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("staging_bytes", [1 << 12, 1 << 20, 64 << 20])
def test_a_model_on_the_gpu_comes_out_bit_for_bit(
    world: None, reference: Path, tmp_path: Path, staging_bytes: int, way: str
) -> None:
    model = build()
    write(way, model, tmp_path / "d", reference, staging_bytes=staging_bytes)
    found, wanted = dumped(tmp_path / "d"), expected(model)
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert different == []


@pytest.mark.parametrize("way", WAYS)
def test_device_memory_stays_as_it_was(world: None, reference: Path, tmp_path: Path, way: str) -> None:
    model = build()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    write(way, model, tmp_path / "d", reference, staging_bytes=2 << 20)
    assert torch.cuda.max_memory_allocated() - before < 4 << 20


def test_fp8_parameters_are_refused_by_class(world: None, reference: Path, tmp_path: Path) -> None:
    from shardmerge.common.errors import UnsupportedParameterError
    from shardmerge.phase1_dump import dump

    model = build(fp8="hybrid", fp8_recipe="tensorwise", fp8_param=True)
    with pytest.raises(UnsupportedParameterError, match="Float8Tensor"):
        dump(model, tmp_path / "d", hf_reference=reference, run_id="gpu", step=1)
    assert not (tmp_path / "d" / "rank-00000").exists()
