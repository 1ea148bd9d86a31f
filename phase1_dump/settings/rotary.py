"""Reads how a live model rotates queries and keys: from its rotary embedding, whatever it was made with.

Source: megatron/core/models/common/embeddings/{rotary_pos_embedding,yarn_rotary_pos_embedding}.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from shardmerge.common.architectures.settings.rope import magnitude
from shardmerge.common.architectures.settings.vocabulary import Value


def settings(models: Sequence[Any], modules: Iterable[tuple[str, Any]]) -> dict[str, Value]:
    """Return what this rank can tell of rotation.

    Args:
        models: This rank's chunks.
        modules: All their modules with names.

    Returns:
        Values by the names of the vocabulary. Several embeddings that differ are told as one list of all numbers.
    """
    config = models[0].config
    found: dict[str, Value] = {"layers_without_rope": _without_rope(config)}
    if config.multi_latent_attention:
        embeddings = [module.rotary_pos_emb for _, module in modules if hasattr(module, "q_head_dim")]
    else:
        embeddings = [model.rotary_pos_emb for model in models if hasattr(model, "rotary_pos_emb")]
        if not embeddings:
            return {
                **found,
                "rope_frequencies": [],
                "rope_local_frequencies": None,
                "rope_factor": 1.0,
                "rope_sections": None,
            }
    if not embeddings:
        return found
    frequencies = [_frequencies(one) for one in embeddings]
    factors = [_applied(config)] if _is_told(config) else [_factor(one) for one in embeddings]
    return {
        **found,
        "rope_frequencies": _same(frequencies, list(chain.from_iterable(frequencies))),
        "rope_local_frequencies": _local(embeddings[0]),
        "rope_factor": _same(factors, factors),
        **_sections(models, embeddings),
    }


def _local(embedding: Any) -> list[float] | None:
    """Return the radians a token in layers with a window, where an embedding has others for them.

    Source: megatron-bridge, models/gemma/gemma3_provider.py (`Gemma3RotaryEmbedding`).
    """
    return _frequencies(embedding.rope_local) if hasattr(embedding, "rope_local") else None


def _sections(models: Sequence[Any], embeddings: Iterable[Any]) -> dict[str, Value]:
    """Return how the axes of multimodal positions share the pairs: in blocks, unless somebody changed megatron-core.

    Megatron-Bridge's embedding and mcore-bridge's, whose config has an option for it, take turns.
    """
    config = models[0].config
    if not any(getattr(model, "position_embedding_type", "") == "mrope" for model in models):
        return {"rope_sections": None}
    in_turn = getattr(config, "mrope_interleaved", False) or any(
        hasattr(one, "apply_interleaved_mrope") and not hasattr(config, "mrope_interleaved")
        for one in embeddings
    )
    return {"rope_sections": config.mrope_section, "rope_sections_interleaved": bool(in_turn)}


def _same(values: list[Any], otherwise: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else otherwise


def _without_rope(config: Any) -> list[int] | None:
    listed = [int(one) for one in config.no_rope_freq or ()]
    return listed if any(listed) else None


def _is_yarn(embedding: Any) -> bool:
    return hasattr(embedding, "inv_freq_extra")


def _frequencies(embedding: Any) -> list[float]:
    """Return the radians a token of each pair. Positions that are interpolated are frequencies divided."""
    if _is_yarn(embedding):
        return list(_yarn(embedding))
    stretch = embedding.seq_len_interpolation_factor or 1.0
    return [one / stretch for one in embedding.inv_freq.tolist()]


def _yarn(embedding: Any) -> Iterator[float]:
    """Yield what `YarnRotaryEmbedding.get_emb` computes of both sets of frequencies, by megatron-core's own mask."""
    from megatron.core.models.common.embeddings import yarn_rotary_pos_embedding as yarn

    low, high = yarn._yarn_find_correction_range(
        embedding.beta_fast,
        embedding.beta_slow,
        embedding.dim,
        embedding.rotary_base,
        embedding.original_max_position_embeddings,
        embedding.correction_range_round_to_int,
    )
    ramp = yarn._yarn_linear_ramp_mask(low, high, embedding.dim // 2, device="cpu").tolist()
    kept, stretched = embedding.inv_freq_extra.tolist(), embedding.inv_freq_inter.tolist()
    for part, one, other in zip(ramp, kept, stretched, strict=True):
        yield other * part + one * (1 - part)


def _factor(embedding: Any) -> float:
    """Return the factor on cosine and sine, which YaRN calls concentration."""
    if not _is_yarn(embedding):
        return 1.0
    return _concentration(embedding.scaling_factor, embedding.mscale, embedding.mscale_all_dim)


def _is_told(config: Any) -> bool:
    """Whether grouped-query attention takes YaRN's factor from its config, whatever the embedding is.

    Source: megatron/core/transformer/attention.py (`_yarn_get_concentration_factor_from_config`).
    """
    return (
        not config.multi_latent_attention and getattr(config, "yarn_rotary_scaling_factor", None) is not None
    )


def _applied(config: Any) -> float:
    own, all_dim = getattr(config, "yarn_mscale", None), getattr(config, "yarn_mscale_all_dim", None)
    return _concentration(config.yarn_rotary_scaling_factor, own, all_dim)


def _concentration(scale: float, own: float | None, all_dim: float | None) -> float:
    if own is None or all_dim is None:
        return magnitude(scale)
    return magnitude(scale, own) / magnitude(scale, all_dim)
