"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 with an indexer that makes latent attention sparse.

The query is always low-rank. In GLM-5.2 some layers use the choice of the one before and have no indexer. A step of
multi-token prediction is a layer after the last, as DeepSeek-V3's, with an indexer. Of DeepSeek-V3.2 no other program
shows how trained steps are named: they can be taken from the reference or left out.
Source: transformers, models/deepseek_v32/modeling_deepseek_v32.py and models/glm_moe_dsa/configuration_glm_moe_dsa.py;
vLLM, models/deepseek_v32/attention.py.
"""

from __future__ import annotations

from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ...blocks.experts import OWN_LOADER
from ...blocks.indexer import INDEXED, INDEXER_ROWS, indexer_settings
from ...blocks.mla import FIXED_NORM_EPS, LATENT_ATTENTION, LATENT_SIZES
from ...blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ...blocks.mtp import NUMBER, copies, decoder_and_steps, promising_none, step_rows, steps_of
from ...blocks.router import biased_router, biased_router_settings
from ...dimensions import dense_layers, integer
from ...keys import HF_LAYER, STEP_LAYER
from ...rows import Architecture, Config, Layers, MultiTokenPrediction
from ...settings.says import always, derived, key
from . import deepseek

ROWS = (
    EMBEDDINGS
    + NORMS
    + LATENT_ATTENTION
    + INDEXER_ROWS
    + DENSE_MLP
    + biased_router(HF_LAYER + "mlp.gate.")
    + SHARED_EXPERTS
    + ROUTED_EXPERTS
)
FULL = ("full", "F")  # how a layer with an indexer of its own is called


def _dimensions(config: Config) -> dict[str, int]:
    heads, channels = integer(config, "index_n_heads"), integer(config, "index_head_dim")
    own = {"index_heads": heads, "index_dim": channels, "index_q": heads * channels}
    return deepseek.dimensions(config) | own


def _layers(config: Config) -> Layers:
    """Read which layers are dense from their kinds, or from a number; all have an indexer."""
    found = decoder_and_steps(config, dense_layers(config, first=3), steps_of(config))
    return found | {INDEXED: found["layers"]}


def _glm_layers(config: Config) -> Layers:
    return _layers(config) | {INDEXED: _indexed(config)}


def _indexed(config: Config) -> frozenset[int]:
    """Return the layers with an indexer: config.json lists their kinds, or says how often one comes. Steps have one."""
    layers = range(config["num_hidden_layers"])
    steps = frozenset(range(layers.stop, layers.stop + steps_of(config)))
    kinds = config.get("indexer_types") or config.get("index_topk_pattern")
    if kinds is not None:
        if len(kinds) < len(layers):
            raise ValueError(f"num_hidden_layers and the indexers of {len(kinds)} layers")
        return steps | {layer for layer in layers if kinds[layer] in FULL}
    every, offset = max(integer(config, "index_topk_freq", 1), 1), config.get("index_skip_topk_offset", 2)
    return steps | {layer for layer in layers if max(layer - offset + 1, 0) % every == 0}


MTP = MultiTokenPrediction(
    lambda config: (steps_of(config), 1),
    STEP_LAYER,
    (HF_LAYER, HF_LAYER),
    promising_none,
    "vllm/models/deepseek_v32",
)
MTP_STEPS = derived("mtp_steps", (NUMBER,), steps_of)

DEEPSEEK_V32 = Architecture(
    "DeepseekV32ForCausalLM",
    "transformers models/deepseek_v32/modeling_deepseek_v32.py",
    ROWS,
    _dimensions,
    deepseek.flags,
    _layers,
    model_types=("deepseek_v32",),
    mtp=MTP,
    settings=(
        *LATENT_SIZES,
        always("rope_interleaved", True),
        FIXED_NORM_EPS,
        *indexer_settings(interleaved=False),
        rms_norms(),
        activation(),
        TIED,
        *biased_router_settings(groups=(8, 4), scaling=2.5),
        MTP_STEPS,
    ),
    experts=OWN_LOADER,
    oracles=("transformers",),
)

GLM_MOE_DSA = Architecture(
    "GlmMoeDsaForCausalLM",
    "transformers models/glm_moe_dsa/modeling_glm_moe_dsa.py",
    ROWS + step_rows(HF_LAYER, HF_LAYER + "shared_head.norm.weight") + copies(),
    _dimensions,
    deepseek.flags,
    _glm_layers,
    model_types=("glm_moe_dsa",),
    mtp=MTP,
    settings=(
        *LATENT_SIZES,
        always("rope_interleaved", True),
        # vLLM, SGLang and Megatron; transformers takes 1e-6 whatever config.json says
        key("latent_norm_eps", "rms_norm_eps", otherwise=1e-5),
        *indexer_settings(interleaved=True),
        rms_norms(1e-5),
        activation(),
        TIED,
        *biased_router_settings(groups=(1, 1), scaling=2.5),
        MTP_STEPS,
    ),
    experts=OWN_LOADER,
    oracles=("Megatron-Bridge", "mcore-bridge", "transformers"),
)
