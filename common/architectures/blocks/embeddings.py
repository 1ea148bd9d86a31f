"""Rows of both embeddings, and of the norms that most decoders have; their settings.

Source: megatron/core/models/gpt/gpt_layer_specs.py (`sharded_state_dict_keys_map`: the same norm has two keys,
depending on the layer spec).
"""

from __future__ import annotations

from ..keys import HF_LAYER, LAYER
from ..rows import Layout, Row, Target, same
from ..settings.says import Says, key


def embeddings(name: str, norm_key: str, norm_name: str) -> tuple[Row, ...]:
    """Return the rows of both embeddings and of the norm after the last layer.

    Args:
        name: Hugging Face name of the input embedding.
        norm_key: Megatron key of the last norm.
        norm_name: Hugging Face name of the last norm.

    Returns:
        Three rows. That of the output embedding applies unless config.json ties it to the input.
    """
    return (
        Row(("embedding.word_embeddings.weight",), (Target(name, ("vocab", "hidden")),), Layout.VOCAB),
        Row(
            ("output_layer.weight",),
            (Target("lm_head.weight", ("vocab", "hidden")),),
            Layout.VOCAB,
            when="untied",
        ),
        same(norm_key, norm_name, "hidden", where="model"),
    )


EMBEDDINGS = embeddings("model.embed_tokens.weight", "decoder.final_layernorm.weight", "model.norm.weight")

NORMS = (
    Row(
        (
            LAYER + "self_attention.linear_qkv.layer_norm_weight",
            LAYER + "input_layernorm.weight",
        ),
        (Target(HF_LAYER + "input_layernorm.weight", ("hidden",)),),
        where="layers",
    ),
    Row(
        (LAYER + "mlp.linear_fc1.layer_norm_weight", LAYER + "pre_mlp_layernorm.weight"),
        (Target(HF_LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        where="layers",
    ),
)

TIED = key("tied_embeddings", "tie_word_embeddings", otherwise=False)


def rms_norms(eps: float = 1e-6) -> Says:
    """Return the setting of what norms add to the mean square: `eps` where config.json says nothing."""
    return key("norm_eps", "rms_norm_eps", otherwise=eps)
