"""What config.json and files say of a language model beside a vision tower, and not of one alone.

Must not know megatron-core. Source: transformers 5, models/{qwen3_vl,qwen3_vl_moe,kimi_k25,llama4}/configuration_*.py,
and conversion_mapping.py ("kimi_k25"); for what is published, vllm/model_executor/models/qwen3_vl_moe.py
(`is_fused_checkpoint_transposed`) and kimi_k25{,_vit}.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.worlds.hf_words import delta, llama4

if TYPE_CHECKING:
    from tests.worlds.families import Family

Json = dict[str, Any]
# beginnings of names of what is beside
VISION = ("model.visual.", "vision_tower.", "mm_projector.", "vision_model.", "multi_modal_projector.")
KIMI_NAMES = (
    ("language_model.model.blocks.", "language_model.model.layers."),
    ("model.mm_projector.", "mm_projector."),
    ("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed."),
)
# which transformers leaves out, and without which vLLM takes no router bias
KIMI_ROUTER = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
TRANSPOSED = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)$")


def _qwen_vision(family: Family) -> Json:
    return {
        "depth": 2,
        "hidden_size": 24,
        "num_heads": 2,
        "intermediate_size": 44,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": family.hidden,
    }


def _kimi_vision(_family: Family) -> Json:
    return {
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "intermediate_size": 44,
        "pos_emb_height": 5,
        "pos_emb_width": 6,
        "pos_emb_time": 3,
    }


def _qwen(family: Family, text: Json) -> Json:
    axes = {"mrope_section": list(family.rope_sections), "mrope_interleaved": True}
    text = text | {"rope_parameters": text["rope_parameters"] | axes}
    if family.experts is not None:
        text |= {
            "moe_intermediate_size": family.experts.width,
            "num_experts": family.experts.num_experts,
            "num_experts_per_tok": family.experts.top_k,
        }
    return _around(family, text, _qwen_vision(family))


def _qwen_delta(family: Family, text: Json) -> Json:
    """Nothing is added to the hidden states after the first layers."""
    axes = {"mrope_section": list(family.rope_sections), "mrope_interleaved": True}
    text = delta(family, text | {"rope_parameters": text["rope_parameters"] | axes})
    vision = {key: value for key, value in _qwen_vision(family).items() if "deepstack" not in key}
    return _around(family, text, vision)


def _kimi(family: Family, text: Json) -> Json:
    experts = family.experts
    assert experts is not None
    text = text | {
        "model_type": "deepseek_v3",
        "moe_intermediate_size": experts.width,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalized,
        "n_routed_experts": experts.num_experts,
        "n_shared_experts": experts.shared_width // experts.width,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": experts.scaling,
        "first_k_dense_replace": experts.dense_layers,
        "num_nextn_predict_layers": 0,
    }
    return _around(family, text, _kimi_vision(family)) | {"projection_hidden_size": 24}


def _llama4_vision(_family: Family) -> Json:
    """Four patches are shuffled into one, which is four times as wide.

    The adapter's second layer is square, as published: transformers and vLLM differ in which of its widths both have.
    """
    return {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "projector_input_dim": 52,
        "projector_output_dim": 52,
        "vision_output_dim": 52,
        "image_size": 16,
        "patch_size": 4,
    }


def _llama4(family: Family, text: Json) -> Json:
    return _around(family, llama4(family, text), _llama4_vision(family))


def _around(family: Family, text: Json, vision: Json) -> Json:
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": family.tied}


# architecture -> the arguments of its config class, from a family and what most classes share
COMPOSITES: dict[str, Callable[[Family, Json], Json]] = {
    "Qwen3VLForConditionalGeneration": _qwen,
    "Qwen3VLMoeForConditionalGeneration": _qwen,
    "Qwen3_5ForConditionalGeneration": _qwen_delta,
    "Qwen3_5MoeForConditionalGeneration": _qwen_delta,
    "KimiK25ForConditionalGeneration": _kimi,
    "Llama4ForConditionalGeneration": _llama4,
}


def published(family: Family, config: Json) -> Json:
    """Return a config.json of transformers 5 as published ones spell it."""
    text = config["text_config"] | {"rope_theta": float(family.rope_theta), "dtype": "bfloat16"}
    if family.architecture == "Qwen3VLMoeForConditionalGeneration":
        text["num_experts"] = text.pop("num_local_experts", text.get("num_experts"))
        text["norm_topk_prob"] = True  # which transformers takes for granted, and vLLM asks for
    if family.architecture == "KimiK25ForConditionalGeneration":
        text |= {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], **KIMI_ROUTER}
    return config | {"text_config": text}


def publish_weights(family: Family, path: Path) -> None:
    """Give files that transformers wrote the names and the orientation of published ones.

    It turns packed experts of Qwen3-VL, and exchanges names of Kimi-K2.5 that it does not know when it loads them.
    """
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        save_file(dict(_published_weights(family, tensors)), file, metadata={"format": "pt"})


def _published_weights(
    family: Family, tensors: dict[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    turned = family.architecture == "Qwen3VLMoeForConditionalGeneration"
    for name, tensor in tensors.items():
        if turned and TRANSPOSED.search(name):
            yield name, tensor.transpose(1, 2).contiguous()
        elif family.architecture == "KimiK25ForConditionalGeneration":
            yield reduce(lambda named, pair: named.replace(*pair), KIMI_NAMES, name), tensor
        else:
            yield name, tensor
