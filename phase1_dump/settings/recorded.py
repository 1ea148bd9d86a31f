"""Reads the settings that training recorded beside a checkpoint as plain YAML: fields of TransformerConfig by name.

What only modules of a live model know, and what is not recorded plainly, is left out: it is told as not compared.
Source: megatron-bridge, training/utils/config_utils.py (`to_yaml`: callables are mappings with `_target_`), and
models/gpt_provider.py for what stands beside the fields of TransformerConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from shardmerge.common.architectures.settings.vocabulary import MTP_SETTINGS

from .fields import KNOWN
from .of_config import Settings, attention, feed_forward, grouped_attention, latent_attention, router

TARGET = "_target_"
# of the model's own arguments, beside the fields of TransformerConfig -> what it must be for plain rotation
PLAIN_ROTATION = {
    "position_embedding_type": ("rope",),
    "rope_scaling": (False, None),
    "seq_len_interpolation_factor": (None, 1.0),
    "yarn_rotary_scaling_factor": (None,),
}


def recorded_settings(model: Mapping[str, Any], *, drop_mtp: bool = False) -> Settings:
    """Return the settings that a recorded config of a model tells.

    Args:
        model: Fields of the config by name, as they were read from plain YAML.
        drop_mtp: Multi-token prediction is left out, and nothing is said of it.

    Returns:
        Values by the names of the vocabulary. A part that lacks one of the fields that decide it is left out.

    Raises:
        ValueError, TypeError, ArithmeticError: a field has a value that no config has.
    """
    config = SimpleNamespace(**{name: value for name, value in model.items() if type(name) is str})
    config.activation_func = _function(model.get("activation_func"))
    found: Settings = {}
    for part in _parts(model):
        try:
            found |= part(config)
        except AttributeError:  # of a version that has not all of these fields
            continue
    return {name: value for name, value in found.items() if not (drop_mtp and name in MTP_SETTINGS)}


def own_options(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what is recorded and not a field of megatron-core's configs that is classed."""
    return tuple(sorted(str(name) for name in model if name not in KNOWN and not str(name).startswith("_")))


def _parts(model: Mapping[str, Any]) -> Iterator[Callable[[Any], Settings]]:
    latent = bool(model.get("multi_latent_attention"))
    yield (lambda config: latent_attention(config, ())) if latent else grouped_attention
    yield attention
    yield _norms
    if model.get("activation_func") is not None:
        yield feed_forward
    if model.get("num_moe_experts"):
        yield router
    if not latent:
        yield _rotation
    yield lambda config: {"tied_embeddings": bool(config.share_embeddings_and_output_weights)}
    if not model.get("mtp_use_repeated_layer"):
        yield lambda config: {"mtp_steps": config.mtp_num_layers or 0}


def _norms(config: Any) -> Settings:
    return {
        "norm": config.normalization,
        "zero_centred_norms": bool(config.layernorm_zero_centered_gamma),
        "norm_eps": float(config.layernorm_epsilon),
    }


def _rotation(config: Any) -> Settings:
    """Return the radians a token of each pair, where the base alone decides them.

    Source: megatron/core/models/common/embeddings/rotary_pos_embedding.py.
    """
    if any(getattr(config, field, fine[0]) not in fine for field, fine in PLAIN_ROTATION.items()):
        return {}
    if type(config.rotary_base) not in (int, float):  # some families have one for each kind of layer
        return {}
    channels = int(config.kv_channels * config.rotary_percent)
    return {"rope_frequencies": [config.rotary_base ** (-at / channels) for at in range(0, channels, 2)]}


def _function(recorded: Any) -> Any:
    """Return what stands for a recorded function: it has its name alone."""
    target = recorded.get(TARGET) if isinstance(recorded, Mapping) else recorded
    if type(target) is not str:
        return None
    name = target.rpartition(".")[2]
    approximate = recorded.get("approximate") if isinstance(recorded, Mapping) else None
    return SimpleNamespace(__name__=f"{name}_{approximate}" if approximate else name)
