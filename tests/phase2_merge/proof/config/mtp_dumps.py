"""Dumps of tiny models with steps of multi-token prediction, every tensor written down by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardmerge.common.architectures import blueprint
from shardmerge.phase2_merge import merge
from tests.dumps.dumps import Cut, Model, Topology, write_dump

Shapes = dict[str, tuple[int, ...]]
HIDDEN, VOCAB = 8, 24
STAGES = Topology(pp=2, tp=2)

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": HIDDEN,
    "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "n_routed_experts": 2, "moe_intermediate_size": 20, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 14, "qk_nope_head_dim": 5, "qk_rope_head_dim": 3,
    "v_head_dim": 7, "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
}  # fmt: skip
NEMOTRON: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hidden_size": HIDDEN,
    "hybrid_override_pattern": "*", "num_hidden_layers": 1, "intermediate_size": 12, "vocab_size": VOCAB,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
    "mamba_num_heads": 4, "mamba_head_dim": 3, "n_groups": 2,
    "ssm_state_size": 7, "conv_kernel": 4, "n_routed_experts": 3, "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 40, "moe_latent_size": 9, "num_nextn_predict_layers": 1,
    "mtp_hybrid_override_pattern": "*E",
}  # fmt: skip
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COPIES = {"model.layers.1.embed_tokens.weight": EMBED, "model.layers.1.shared_head.head.weight": HEAD}


def deepseek_shapes() -> Shapes:
    """All tensors as published, the copies of embedding and head left out."""
    found: Shapes = {EMBED: (VOCAB, HIDDEN), HEAD: (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        found |= {
            at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "self_attn.q_a_proj.weight": (10, HIDDEN), at + "self_attn.q_a_layernorm.weight": (10,),
            at + "self_attn.q_b_proj.weight": (16, 10), at + "self_attn.kv_a_proj_with_mqa.weight": (17, HIDDEN),
            at + "self_attn.kv_a_layernorm.weight": (14,), at + "self_attn.kv_b_proj.weight": (24, 14),
            at + "self_attn.o_proj.weight": (HIDDEN, 14),
        }  # fmt: skip
    found |= _gated("model.layers.0.mlp.", 12)
    at = "model.layers.1."
    found |= {at + "mlp.gate.weight": (2, HIDDEN), at + "mlp.gate.e_score_correction_bias": (2,)}
    found |= _gated(at + "mlp.shared_experts.", 20)
    found |= _gated(at + "mlp.experts.0.", 20) | _gated(at + "mlp.experts.1.", 20)
    found |= {at + name: (HIDDEN,) for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
    return found | {at + "eh_proj.weight": (HIDDEN, 2 * HIDDEN)}


def nemotron_shapes() -> Shapes:
    """One attention layer, and a step of an attention layer and one of latent experts."""
    found: Shapes = {
        "backbone.embeddings.weight": (VOCAB, HIDDEN), HEAD: (VOCAB, HIDDEN), "backbone.norm_f.weight": (HIDDEN,),
        "mtp.layers.0.enorm.weight": (HIDDEN,), "mtp.layers.0.hnorm.weight": (HIDDEN,),
        "mtp.layers.0.eh_proj.weight": (HIDDEN, 2 * HIDDEN), "mtp.layers.1.final_layernorm.weight": (HIDDEN,),
        "mtp.layers.1.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for at in ("backbone.layers.0.", "mtp.layers.0."):
        found |= {
            at + "norm.weight": (HIDDEN,), at + "mixer.q_proj.weight": (12, HIDDEN),
            at + "mixer.k_proj.weight": (6, HIDDEN), at + "mixer.v_proj.weight": (6, HIDDEN),
            at + "mixer.o_proj.weight": (HIDDEN, 12),
        }  # fmt: skip
    at = "mtp.layers.1.mixer."
    found |= {
        at + "gate.weight": (3, HIDDEN), at + "gate.e_score_correction_bias": (3,),
        at + "fc1_latent_proj.weight": (9, HIDDEN), at + "fc2_latent_proj.weight": (HIDDEN, 9),
        at + "shared_experts.up_proj.weight": (40, HIDDEN), at + "shared_experts.down_proj.weight": (HIDDEN, 40),
    }  # fmt: skip
    for expert in range(3):
        found |= {
            f"{at}experts.{expert}.up_proj.weight": (20, 9),
            f"{at}experts.{expert}.down_proj.weight": (9, 20),
        }
    return found


def _gated(at: str, width: int) -> Shapes:
    return {
        at + "gate_proj.weight": (width, HIDDEN),
        at + "up_proj.weight": (width, HIDDEN),
        at + "down_proj.weight": (HIDDEN, width),
    }


class Written:
    """A dump of a model on two stages of two ranks, and a reference."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], shapes: Shapes, *, trained: bool = True
    ) -> None:
        numbers = np.random.default_rng(3)
        self.folder, self.config = folder, dict(config)
        self.table = blueprint(config)
        self.all = Model(self.config)
        for name, shape in shapes.items():
            dtype = "F32" if name.endswith("correction_bias") else "BF16"
            size = int(np.prod(shape)) * (4 if dtype == "F32" else 2)
            self.all.tensors[name] = (dtype, shape, numbers.bytes(size - 2) + b"\x00\x3f")
        own = {name: tensor for name, tensor in self.all.tensors.items() if trained or not is_mtp(name)}
        self.model = Model(self.config, own)
        facts = {"dtype": "BF16", "dimensions": self.table.dimensions}
        self.dump = write_dump(folder / "dump", self.model, cuts(self.model), STAGES, facts=facts)
        self.reference = folder / "reference"
        self.reference.mkdir()
        self.say(config)

    def say(self, config: Mapping[str, Any]) -> None:
        """Let the reference's config.json say this."""
        (self.reference / "config.json").write_text(json.dumps(config))

    def merge(self, **options: Any) -> Path:
        out = self.folder / "out"
        merge([self.dump], out, hf_reference=self.reference, workers=1, max_shard_bytes=2000, **options)
        return out

    def config_of(self, out: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((out / "config.json").read_text())
        return found


def is_mtp(name: str) -> bool:
    return name.startswith(("mtp.", "model.layers.1."))


def cuts(model: Model) -> dict[str, list[Cut]]:
    """Matrices of even rows are cut in two; embeddings lie on the first stage, MTP and the head on the last."""
    found = {}
    for name, (_, shape, _) in model.tensors.items():
        stage = 1 if is_mtp(name) or name.startswith(("lm_head", "model.norm", "backbone.norm")) else 0
        first = STAGES.rank(0, 0, stage)
        if len(shape) == 2 and shape[0] % 2 == 0 and "down_proj" not in name and "gate.weight" not in name:
            half = (shape[0] // 2, shape[1])
            found[name] = [Cut(first, (0, 0), half), Cut(first + 1, (half[0], 0), half)]
        else:
            found[name] = [Cut(first, (0,) * len(shape), shape)]
    return found


def with_copies(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a published DeepSeek: embedding and head once more below the step."""
    return {**tensors, **{name: tensors[source] for name, source in COPIES.items() if source in tensors}}


def published(one: Written) -> dict[str, Any]:
    tensors = one.all.tensors
    return with_copies(tensors) if one.config["model_type"] == "deepseek_v3" else dict(tensors)


def shapes_of(one: Written) -> Shapes:
    return {name: shape for name, (_, shape, _) in one.all.tensors.items()}


def plain_modules(model: Model) -> set[str]:
    matrices = (
        name for name, (_, shape, _) in model.tensors.items() if len(shape) == 2 and name.endswith(".weight")
    )
    return {name.removesuffix(".weight") for name in matrices if name not in (HEAD, EMBED)}
