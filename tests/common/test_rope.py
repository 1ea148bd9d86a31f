"""Rotary frequencies that a config.json implies, against those that transformers computes from the same file."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GptOssConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding

from shardmerge.common.architectures.families.dense.llama import LLAMA
from shardmerge.common.architectures.families.gpt_oss import GPT_OSS
from shardmerge.common.architectures.rows import Architecture
from shardmerge.common.architectures.settings import rope
from shardmerge.common.architectures.settings.says import Says
from shardmerge.common.architectures.settings.vocabulary import agree

CHANNELS, LENGTH = 48, 16384
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4,
    "short_factor": [1 + pair / 16 for pair in range(CHANNELS // 2)], "long_factor": [4.0] * (CHANNELS // 2),
}  # fmt: skip
SPELLINGS: dict[str, dict[str, Any]] = {
    "new": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "old": {"rope_theta": 5e5},
    "none": {},
    "both, and the new one counts": {
        "rope_theta": 3e4,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    },
    "scaling counts before parameters": {
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "partial": {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    "partial inside": {
        "rope_parameters": {
            "rope_theta": 5e5,
            "rope_type": "linear",
            "factor": 3.0,
            "partial_rotary_factor": 0.25,
        }
    },
    "linear": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}},
    "llama3 in the new spelling": {
        "rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 1024}
    },
    "llama3 without a length": {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
    "yarn": {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", **YARN}},
    "yarn of DeepSeek": {
        "rope_scaling": {
            **YARN,
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    },
    "yarn with two magnitudes": {
        "rope_parameters": {**YARN, "rope_theta": 1e6, "mscale": 0.7, "mscale_all_dim": 1.3}
    },
    "yarn with one magnitude": {"rope_parameters": {**YARN, "rope_theta": 1e6, "mscale": 0.7}},
    "yarn with a factor on attention": {
        "rope_parameters": {**YARN, "rope_theta": 1e6, "attention_factor": 1.7}
    },
    "longrope": {"rope_scaling": {**LONG, "original_max_position_embeddings": 4096}},
    "longrope with a factor": {
        "rope_scaling": {**LONG, "factor": 8.0, "original_max_position_embeddings": 2048}
    },
    "yarn that is not rounded": {"rope_parameters": {**YARN, "rope_theta": 15e4, "truncate": False}},
    "yarn with other turns": {
        "rope_parameters": {**YARN, "rope_theta": 1e6, "beta_fast": 8.0, "beta_slow": 2.0}
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_frequencies_are_those_of_transformers(spelling: str) -> None:
    said = {"max_position_embeddings": LENGTH, **SPELLINGS[spelling]}
    config = LlamaConfig(hidden_size=4 * CHANNELS, num_attention_heads=4, head_dim=CHANNELS, **_copy(said))
    kind = rope.parameters(said, 1e4)["rope_type"]
    function = ROPE_INIT_FUNCTIONS.get(kind, Glm4RotaryEmbedding.compute_default_rope_parameters)
    expected, factor = function(config)
    ours = rope.frequencies(said, CHANNELS, 1e4)
    assert agree(ours, expected.tolist())
    assert agree(rope.attention_factor(rope.parameters(said, 1e4), said), float(factor))


def test_frequencies_of_different_bases_differ() -> None:
    assert not agree(
        rope.frequencies({"rope_theta": 10000.0}, 64, 1.0), rope.frequencies({"rope_theta": 10001.0}, 64, 1.0)
    )
    assert not agree(rope.frequencies({}, 64, 1e4), rope.frequencies({}, 62, 1e4))


@pytest.mark.parametrize(
    "said",
    [
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "factor": 2.0}},
        {"rope_scaling": {"rope_type": "proportional", "rope_theta": 1e4}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}},
        {"rope_parameters": 7},
        {"rope_theta": "10000"},
        {"rope_scaling": {"rope_type": "linear"}},
        {"partial_rotary_factor": 1e12},
    ],
)
def test_what_is_not_known_is_no_frequency(said: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        rope.frequencies({"max_position_embeddings": LENGTH, **said}, CHANNELS, 1e4)


@pytest.mark.parametrize(
    "said", [{}, {"rope_theta": 1e4, "rope_scaling": None}, {"rope_scaling": {}}, {"rope_parameters": None}]
)
def test_gpt_oss_without_scaling_is_scaled(said: dict[str, Any]) -> None:
    config = GptOssConfig(head_dim=CHANNELS, **_copy(said))
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    found = {row.setting: row.value({"head_dim": CHANNELS, **said}) for row in _rotation(GPT_OSS)}
    assert agree(found["rope_frequencies"], expected.tolist())
    assert agree(found["rope_factor"], float(factor))


def test_gpt_oss_with_parameters_is_not_scaled_by_itself() -> None:
    said = {"head_dim": CHANNELS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    found = {row.setting: row.value(said) for row in _rotation(GPT_OSS)}
    assert found == {"rope_frequencies": rope.frequencies(said, CHANNELS, 1e4), "rope_factor": 1.0}


def test_a_part_of_heads_that_transformers_ignores_is_no_frequency() -> None:
    said = {"head_dim": CHANNELS, "partial_rotary_factor": 0.5}
    frequencies = next(row for row in _rotation(LLAMA) if row.setting == "rope_frequencies")
    with pytest.raises(ValueError, match=r"partial_rotary_factor = 0\.5, which not all readers heed"):
        frequencies.value(said)
    scaled = {**said, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert len(frequencies.value(scaled)) == CHANNELS // 4
    assert len(frequencies.value({**said, "partial_rotary_factor": 1.0})) == CHANNELS // 2


def _rotation(table: Architecture) -> list[Says]:
    return [row for row in table.settings if row.setting in ("rope_frequencies", "rope_factor")]


def _copy(said: dict[str, Any]) -> dict[str, Any]:
    """transformers writes into the objects that it is given."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in said.items()}
