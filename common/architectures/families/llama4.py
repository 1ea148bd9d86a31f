"""Llama 4: packed experts with a shared one, dense layers between them, layers that do not rotate.

Experts are stored as they multiply from the right, [experts, in, out], gate before up. A token's weight multiplies what
its expert reads. Layers that rotate see chunks and norm queries and keys without weights; in the others queries grow
with the position, all of which tells only of sequences that are longer than a chunk.
Source: transformers, models/llama4/{configuration,modeling}_llama4.py; vLLM, model_executor/models/llama4.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, rotated_heads
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import ONLY_PACKED, PACKED, both_spellings
from ..blocks.mlp import activation, gated_mlp
from ..blocks.router import EXPERTS_PER_TOKEN, plain_router
from ..dimensions import common_dimensions, common_flags, integer, refuse_true, unless_absent
from ..keys import EXPERT, HF_LAYER, LAYER
from ..rows import Architecture, Config, Layers
from ..settings.says import always, derived

HF_MLP = HF_LAYER + "feed_forward."
LENGTH = "max_position_embeddings"
ROTATING = ("no_rope_layers", "no_rope_layer_interval")


def _dimensions(config: Config) -> dict[str, int]:
    return common_dimensions(config) | {
        "num_experts": config["num_local_experts"],
        "moe_ffn": integer(config, "intermediate_size"),
        "ffn": integer(config, "intermediate_size_mlp", 16384),
    }


def _flags(config: Config) -> frozenset[str]:
    refuse_true(config, "attention_bias")
    return common_flags(config)


def _layers(config: Config) -> Layers:
    """Read which layers have experts. vLLM takes the step alone, so a list that says otherwise is refused."""
    every = range(config["num_hidden_layers"])
    step = unless_absent(config, "interleave_moe_layer_step", 1)
    moe = frozenset(every[step - 1 :: step]) if step > 0 else frozenset()
    listed = config.get("moe_layers")
    if listed is not None and frozenset(listed) & frozenset(every) != moe:
        raise ValueError(f"moe_layers = {listed!r:.60} and interleave_moe_layer_step = {step}")
    return {"layers": every, "moe": moe, "dense": frozenset(every) - moe}


def _rotating(config: Config) -> list[int]:
    """Return 1 for each layer that rotates, 0 for the others: an empty list counts as none."""
    layers, interval = range(integer(config, "num_hidden_layers")), integer(config, ROTATING[1], 4)
    listed = config.get(ROTATING[0]) or [int((layer + 1) % interval != 0) for layer in layers]
    if len(listed) < len(layers):
        raise ValueError(f"num_hidden_layers and {ROTATING[0]} of {len(listed)} layers")
    return [int(bool(listed[layer])) for layer in layers]


def _without_rope(config: Config) -> list[int] | None:
    without = [1 - one for one in _rotating(config)]
    return without if any(without) else None


def _chunk(config: Config) -> int | None:
    """Return the size of a chunk, if a sequence can be longer.

    Kinds of layers, which transformers reads instead, must be those that follow from which rotate, as vLLM has them.
    """
    kinds = ["chunked_attention" if rotates else "full_attention" for rotates in _rotating(config)]
    listed = config.get("layer_types")
    if listed is not None and list(listed) != kinds:
        raise ValueError(f"layer_types = {listed!r:.60}, which not all readers heed")
    chunk = unless_absent(config, "attention_chunk_size", 8192)
    return chunk if 0 < chunk < _length(config) and "chunked_attention" in kinds else None


def _temperature(config: Config) -> list[float] | None:
    """Return by how much queries grow and after how many tokens, if a sequence can be as long."""
    scale, floor = config.get("attn_scale", 0.1), config.get("floor_scale", 8192)
    tuned = config.get("attn_temperature_tuning", True) and floor <= _length(config)
    return [float(scale), float(floor)] if tuned and _without_rope(config) else None


def _length(config: Config) -> int:
    return integer(config, LENGTH, 4096 * 32)


EXPERTS = tuple(
    row
    for row in both_spellings(
        gated_mlp(EXPERT, HF_MLP + "experts.{expert}.", "moe_ffn", "moe"), transposed=True
    )
    if row.spelling is PACKED
)

LLAMA4 = Architecture(
    "Llama4ForCausalLM",
    "transformers models/llama4/modeling_llama4.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + gated_mlp(LAYER + "mlp.", HF_MLP, "ffn", "dense")
    + plain_router(HF_MLP + "router.")
    + gated_mlp(LAYER + "mlp.shared_experts.", HF_MLP + "shared_expert.", "moe_ffn", "moe")
    + EXPERTS,
    _dimensions,
    _flags,
    _layers,
    model_types=("llama4_text", "llama4"),
    settings=(
        *rotated_heads(500000.0),
        always("rope_interleaved", True),
        derived("layers_without_rope", ROTATING, _without_rope),
        derived("query_key_norm", ("use_qk_norm",), lambda config: bool(config.get("use_qk_norm", True))),
        always("query_key_norm_without_rope", False),
        derived("attention_chunk", ("attention_chunk_size", LENGTH), _chunk),
        derived(
            "attention_temperature",
            ("attn_temperature_tuning", "attn_scale", "floor_scale", LENGTH),
            _temperature,
        ),
        rms_norms(1e-5),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        always("router_score", "sigmoid"),
        always("router_normalized", False),
        always("router_weights_input", True),
    ),
    experts=ONLY_PACKED,
    oracles=("transformers",),
)
