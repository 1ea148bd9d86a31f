"""Compares the settings of models that other programs make from config.json with what our tables read there.

Run by `make test-oracles`. Exits 1 if a setting of a model differs from what the table of its architecture reads. Each
config.json is tried as transformers writes it and with other values, which no default would hit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import agree
from shardmerge.phase1_dump.settings.live_settings import settings_of
from tests.oracles.bridge import stand_in  # first: it installs Transformer Engine's stub
from tests.oracles.table import MCORE_BRIDGE, ORACLES, every_family
from tests.worlds.fake import join_model_parallel, leave_model_parallel
from tests.worlds.families import Family
from tests.worlds.mtp import write_bare
from tests.worlds.topology import SINGLE
from tests.worlds.vision_language import language_model_of

Json = dict[str, Any]
FAMILIES = {family.name: family for family in every_family()}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GPT_OSS_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
}  # fmt: skip
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 765432.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7654.0},
}
ZEROS = torch.zeros
BASE: Json = {"rope_parameters": {"rope_type": "default", "rope_theta": 765432.0}}
# what transformers leaves out, and Bridge reads
AS_PUBLISHED: Json = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
PARTIAL: Json = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 765432.0, "partial_rotary_factor": 0.25}
}
# Bridge 0.6.2 knows no Mixtral
CASES: tuple[tuple[str, Json], ...] = (
    ("llama", {}),
    ("llama", {**BASE, "rms_norm_eps": 3e-4, "head_dim": 24, "num_attention_heads": 4}),
    ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 65536}),
    ("llama_tied", {}),
    ("mistral", {}),
    ("mistral", {**BASE, "sliding_window": 24, "rms_norm_eps": 3e-4}),
    ("mistral", {"sliding_window": None, "head_dim": 24}),
    ("qwen2", {**BASE, "rms_norm_eps": 3e-4}),
    ("qwen3", {**BASE, "rms_norm_eps": 3e-4}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {**BASE, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("olmoe", {"num_key_value_heads": 8}),
    ("olmoe", {**BASE, "num_key_value_heads": 8, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("ernie4_5_moe", {}),
    ("ernie4_5_moe", {"moe_k": 3, "rms_norm_eps": 3e-4, "tie_word_embeddings": True}),
    ("exaone_moe", {}),
    ("exaone_moe", {**BASE, "routed_scaling_factor": 1.75, "num_experts_per_tok": 4, "rms_norm_eps": 3e-4}),
    ("exaone_moe", {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "sliding_window": 32}),
    ("qwen2_moe", {}),
    ("qwen2_moe", {**BASE, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4, "norm_topk_prob": True}),
    ("qwen3_next", {}),
    (
        "qwen3_next",
        {
            **PARTIAL,
            "head_dim": 16,
            "num_experts_per_tok": 3,
            "rms_norm_eps": 3e-4,
            "linear_conv_kernel_dim": 4,
        },
    ),
    ("qwen3_next", {"layer_types": None, "full_attention_interval": 2, "linear_num_key_heads": 2}),
    ("qwen3_next_mtp", {}),
    ("qwen3_5", {**PARTIAL, "head_dim": 16, "rms_norm_eps": 3e-4, "linear_value_head_dim": 8}),
    ("qwen3_5_mtp", {}),
    ("qwen3_5_moe", {**PARTIAL, "head_dim": 16, "num_experts_per_tok": 3, "linear_key_head_dim": 8}),
    ("qwen3_5_moe_mtp", {}),
    ("minimax_m2", {}),
    ("minimax_m2", {**BASE, "rotary_dim": 4, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("gpt_oss", {"rope_parameters": GPT_OSS_YARN, "max_position_embeddings": 131072, "sliding_window": 24}),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"rope_parameters": YARN, "max_position_embeddings": 163840}),
    ("deepseek_v3", {"routed_scaling_factor": 1.75, "num_experts_per_tok": 4, "topk_group": 2, "n_group": 4}),
    ("deepseek_v3_full_query", {}),
    ("deepseek_v2", {"rope_parameters": YARN, "max_position_embeddings": 163840}),
    ("deepseek_v2", {"n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_experts_per_tok": 3}),
    ("deepseek_v2_lite", {**BASE, "routed_scaling_factor": 1.0}),
    ("kimi_k2", {**AS_PUBLISHED, "rope_parameters": YARN, "max_position_embeddings": 131072}),
    ("kimi_k2", {**AS_PUBLISHED, **BASE, "routed_scaling_factor": 2.827, "num_experts_per_tok": 3}),
    ("glm4_moe", {}),
    (
        "glm4_moe",
        {**PARTIAL, "head_dim": 16, "use_qk_norm": False, "num_experts_per_tok": 4, "rms_norm_eps": 3e-4},
    ),
    ("glm4_moe", {"attention_bias": False, "num_experts_per_tok": 4, "topk_group": 2, "n_group": 4}),
    ("glm4_moe_lite", {}),
    ("glm4_moe_lite", {**BASE, "rms_norm_eps": 3e-4, "num_experts_per_tok": 4, "routed_scaling_factor": 1.0}),
    ("glm_moe_dsa", {}),
    ("glm_moe_dsa", {**BASE, "index_topk": 5, "rms_norm_eps": 3e-4, "routed_scaling_factor": 1.0}),
    ("glm4_moe_mtp", {}),
    ("glm4_moe_lite_mtp", {}),
    ("bailing_moe_v2", {}),
    (
        "bailing_moe_v2",
        {
            "rope_theta": 765432.0,
            "num_experts_per_tok": 4,
            "topk_group": 2,
            "n_group": 4,
            "rms_norm_eps": 3e-4,
        },
    ),
    ("gemma3", {"layer_types": None}),
    ("gemma3", {"num_hidden_layers": 7, "layer_types": None, "rms_norm_eps": 3e-4, "sliding_window": 24}),
    ("gemma3", {"layer_types": None, "rope_parameters": GEMMA_ROPE, "query_pre_attn_scalar": 33}),
    ("nemotron", {}),
    ("nemotron", {**BASE, "norm_eps": 3e-4, "head_dim": 24}),
    ("nemotron_h", {}),
    ("nemotron_h_latent", {"routed_scaling_factor": 1.75, "num_experts_per_tok": 3}),
    ("qwen3_vl", {}),
    ("qwen3_vl_moe", {}),
)
# family -> settings in which Bridge 0.6.2 differs from all readers: it trains ERNIE with sigmoids, they take a softmax;
# of Gemma 3 the norms after each half of a layer add 1e-5 whatever config.json says
WRONG_IN_BRIDGE: dict[str, set[str]] = {"ernie4_5_moe": {"router_score"}, "gemma3": {"norm_eps"}}
# what a CPU lacks
OPTIONS: Json = {
    "gradient_accumulation_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "moe_shared_expert_overlap": False,
    "persist_layer_norm": False,
}


def main(names: list[str]) -> int:
    """Compare all models, or those of these families. Returns the exit code."""
    stand_in()
    torch.zeros = _zeros_on_cpu
    failed = False
    cases = [(name, edits) for name, edits in CASES if not names or name in names]
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            written(FAMILIES[name], edits, Path(folder) / str(at)) for at, (name, edits) in enumerate(cases)
        ]
        store: Any = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        join_model_parallel(SINGLE)
        try:
            for (name, edits), path in zip(cases, paths, strict=True):
                said = blueprint(json.loads((path / "config.json").read_text())).settings()
                told = settings_of([*map(language_model_of, _models(name, path))])
                both = told.keys() & said.keys()
                wrong = {
                    one: (told[one], said[one].value)
                    for one in both - WRONG_IN_BRIDGE.get(name, set())
                    if not agree(told[one], said[one].value)
                }
                print(
                    f"{name} {sorted(edits)}: {len(both)} settings of the oracle's model, {wrong or 'none'} differ"
                )
                failed |= bool(wrong) or len(both) < 24
        finally:
            leave_model_parallel()
    return int(failed)


def _zeros_on_cpu(*size: Any, **options: Any) -> torch.Tensor:
    """Stand for torch.zeros: Transformer Engine's attention allocates its sinks on a GPU, whatever it is told."""
    return ZEROS(*size, **options | ({"device": "cpu"} if options.get("device") == "cuda" else {}))


def written(family: Family, edits: Json, path: Path) -> Path:
    """Write the config.json of a family, and edit it. All are written before torch.distributed is up."""
    write_bare(family, path)
    config = json.loads((path / "config.json").read_text()) | edits
    (path / "config.json").write_text(json.dumps(config))
    return path


def _models(name: str, path: Path) -> list[Any]:
    """Return the model that a family's oracle makes of a config.json, with random weights."""
    if ORACLES[name].program == MCORE_BRIDGE:
        from tests.oracles.mcore_bridge import OnCpu, model_of

        with OnCpu():
            return model_of(path)[1]
    return [_model(path)]


def _model(path: Path) -> Any:
    """Return the model that Bridge makes of a config.json, with random weights."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    provider = provider_of(path)
    provider.use_cpu_initialization, provider.bf16, provider.params_dtype = True, True, torch.bfloat16
    provider.finalize()
    provider._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    for name in [name for name in os.environ if name.startswith("NVTE_")]:
        del os.environ[name]  # a model before it chose a backend of attention for the process
    return provider.provide()


def provider_of(path: Path) -> Any:
    """Return what Bridge makes of a config.json, from which it makes a model."""
    import transformers
    from megatron.bridge import AutoBridge

    config = transformers.AutoConfig.from_pretrained(path)
    rotated = (
        config.rope_parameters.get("partial_rotary_factor") if hasattr(config, "rope_parameters") else None
    )
    if (
        rotated is not None
    ):  # Bridge 0.6.2 looks where transformers 4 had it, and would rotate whole heads of GLM-4.5
        config.partial_rotary_factor = rotated
    provider: Any = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
    for name, value in OPTIONS.items():
        setattr(provider, name, value)
    return provider


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
