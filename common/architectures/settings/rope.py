"""Rotary position embeddings as config.json describes them: frequencies, and the factor on cosine and sine.

Both spellings are read: `rope_parameters`, which transformers 5 writes, and `rope_theta` beside `rope_scaling`.
Source: transformers, modeling_rope_utils.py (`convert_rope_params_to_dict` for what counts where several say it, and
`ROPE_INIT_FUNCTIONS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .says import Config, Says, Synonyms, derived, key

NEW, OLD = "rope_parameters", "rope_scaling"
THETA, PARTIAL = "rope_theta", "partial_rotary_factor"
SCALING = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
SYNONYMS: tuple[Synonyms, ...] = (
    (f"{OLD}.{THETA}", f"{NEW}.{THETA}", THETA),
    (f"{OLD}.{PARTIAL}", f"{NEW}.{PARTIAL}", PARTIAL),
    (f"{OLD}.rope_type", f"{OLD}.type", f"{NEW}.rope_type", f"{NEW}.type"),
    *((f"{OLD}.{name}", f"{NEW}.{name}") for name in SCALING),
)
THETA_OF_MOST = 10000.0
MAX_CHANNELS = 1 << 16  # of a head: no model has a hundredth of it, and each is a number in a list
Channels = Callable[[Config], int]
Partial = Callable[[Config], float]


@dataclass(frozen=True, slots=True)
class Rotated:
    """Which part of a head rotates, of an architecture for which config.json can say it.

    Attributes:
        partial: Of a config.json without `partial_rotary_factor`, the part.
        keys: The keys that say it.
    """

    partial: Partial = lambda _: 1.0
    keys: tuple[str, ...] = ()


HALF = Rotated(lambda _: 0.5, (f"{NEW}.{PARTIAL}", PARTIAL))
QUARTER = Rotated(lambda _: 0.25, (f"{NEW}.{PARTIAL}", PARTIAL))


def rope(
    channels: Channels,
    theta: float = THETA_OF_MOST,
    rotated: Rotated | None = None,
    scaling: Mapping[str, Any] | None = None,
) -> tuple[Says, ...]:
    """Return the rows of an architecture that rotates queries and keys.

    Args:
        channels: Of a config.json, how many channels a head has that may be rotated.
        theta: The base where config.json says none.
        rotated: Which of these channels rotate, if config.json can say it; None: all.
        scaling: What `rope_parameters` stands for where it is absent or null, and `rope_scaling` too. None: nothing.

    Returns:
        Rows of the frequencies, and of the factor on cosine and sine.
    """
    part = rotated or Rotated()
    keys = (f"{NEW}.{THETA}", THETA, OLD, *part.keys)

    def whole(config: Config) -> Config:
        unsaid = scaling is not None and not config.get(OLD) and config.get(NEW) is None
        return {**config, NEW: scaling} if unsaid else config

    def turns(config: Config) -> list[float]:
        if rotated is None:
            _require_whole_heads(parameters(config, theta))
        return frequencies(config, channels(config), theta, part.partial(config))

    return (
        derived("rope_frequencies", keys, lambda config: turns(whole(config)), *SYNONYMS),
        derived(
            "rope_factor",
            (NEW, OLD),
            lambda config: attention_factor(parameters(whole(config), theta), config),
        ),
    )


def sections(otherwise: list[int]) -> tuple[Says, ...]:
    """Return the rows of multimodal positions, whose axes turn pairs in turn, `otherwise` as many of each.

    Source: transformers, models/qwen3_vl/modeling_qwen3_vl.py (`Qwen3VLTextRotaryEmbedding`), which always takes turns;
    vLLM (`get_rope`) does where config.json says so.
    """

    def in_turn(told: Any) -> Any:
        if told is not True:
            raise ValueError(f"{told!r:.40}, which not all readers heed")
        return told

    return (
        key("rope_sections", *(f"{place}.mrope_section" for place in (OLD, NEW)), otherwise=otherwise),
        key(
            "rope_sections_interleaved",
            *(f"{place}.mrope_interleaved" for place in (OLD, NEW)),
            otherwise=True,
            reads=in_turn,
        ),
    )


def _require_whole_heads(said: Mapping[str, Any]) -> None:
    """Raise ValueError for a part of a head where transformers ignores it, and vLLM does not.

    It does without scaling only, in the modeling file of each architecture (`compute_default_rope_parameters`).
    """
    if said["rope_type"] == "default" and said.get(PARTIAL, 1) != 1:
        raise ValueError(f"{PARTIAL} = {said[PARTIAL]!r:.40}, which not all readers heed")


def parameters(config: Config, theta: float) -> dict[str, Any]:
    """Return all that config.json says of rotation, as one object with `rope_type` and `rope_theta`.

    `rope_scaling` counts before `rope_parameters`, and what is inside of either before what is beside them.
    """
    inside = config.get(OLD) or config.get(NEW) or {}
    if not isinstance(inside, Mapping) or any(isinstance(value, Mapping) for value in inside.values()):
        raise ValueError(f"{NEW} = {inside!r:.60}")
    beside = {name: config[name] for name in (THETA, PARTIAL) if config.get(name) is not None}
    known = {name: value for name, value in inside.items() if value is not None}
    kind = known.get("rope_type", known.get("type", "default"))
    return {THETA: theta, **beside, **known, "rope_type": kind}


def frequencies(config: Config, channels: int, theta: float, partial: float = 1.0) -> list[float]:
    """Return the radians a token of each pair of channels, of a sequence that is not longer than in training.

    Args:
        config: What config.json holds.
        channels: Of a head, before `partial_rotary_factor`.
        theta: The base where config.json says none.
        partial: That factor where config.json says none.

    Returns:
        A number for each pair.

    Raises:
        ValueError: A kind of scaling that is not known.
        KeyError, TypeError: A number is missing, or is none.
    """
    said = parameters(config, theta)
    dim = int(channels * said.get(PARTIAL, partial))
    if dim > MAX_CHANNELS:
        raise ValueError(f"{dim:,} channels of a head")
    plain = [said[THETA] ** -(2 * pair / dim) for pair in range(dim // 2)]
    kind = said["rope_type"]
    if kind in ("default", "dynamic"):  # the latter changes longer sequences only
        return plain
    if kind == "linear":
        return [one / said["factor"] for one in plain]
    if kind == "llama3":
        return [_llama3(one, said, _trained_length(said, config)) for one in plain]
    if kind == "yarn":
        return list(_yarn(plain, dim, said, config))
    if kind == "longrope":
        return [one / factor for one, factor in zip(plain, said["short_factor"], strict=True)]
    raise ValueError(f"rope_type {kind!r:.40}")


def attention_factor(said: Mapping[str, Any], config: Config) -> float:
    """Return the factor on cosine and sine, which only YaRN and LongRoPE have."""
    if said["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])
    if said["rope_type"] == "longrope":
        stretched = max(1.0, _factor(said, config))
        return math.sqrt(1 + math.log(stretched) / math.log(_trained_length(said, config)))
    factor, own, all_dim = _factor(said, config), said.get("mscale"), said.get("mscale_all_dim")
    return magnitude(factor, own) / magnitude(factor, all_dim) if own and all_dim else magnitude(factor)


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """Return what YaRN multiplies by for a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _factor(said: Mapping[str, Any], config: Config) -> float:
    factor = said.get("factor")
    return float(
        config["max_position_embeddings"] / _trained_length(said, config) if factor is None else factor
    )


def _trained_length(said: Mapping[str, Any], config: Config) -> int:
    name = "original_max_position_embeddings"
    return int(config.get(name) or said.get(name) or config["max_position_embeddings"])


def _llama3(plain: float, said: Mapping[str, Any], trained: int) -> float:
    """Return one frequency: long waves are stretched, short ones are not, and between them is a ramp."""
    factor, low, high = said["factor"], said["low_freq_factor"], said["high_freq_factor"]
    turns = trained * plain / (2 * math.pi)
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return float((1 - kept) * plain / factor + kept * plain)


def _yarn(plain: list[float], dim: int, said: Mapping[str, Any], config: Config) -> Iterator[float]:
    """Yield the frequencies: of few turns within the trained length are stretched, of many are kept."""
    theta, trained, factor = said[THETA], _trained_length(said, config), _factor(said, config)

    def pair_of(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(said.get("beta_fast") or 32), pair_of(said.get("beta_slow") or 1)
    if said.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    for pair, one in enumerate(plain):
        stretched = min(max((pair - low) / width, 0.0), 1.0)
        yield stretched * one / factor + (1 - stretched) * one
