"""Every table knows the `model_type` by which readers choose its model: transformers' own registry is asked."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from shardmerge.common.architectures import ARCHITECTURES, TABLES, Architecture

REGISTRIES = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
# of models whose code is published beside their weights, and that vLLM has in a registry of its own
ELSEWHERE = {"bailing_moe_v2", "bailing_moe", "kimi_k2"}


def registered(architecture: str) -> set[str]:
    """The model types for which transformers makes a model of this class."""
    pairs = (pair for name in REGISTRIES for pair in getattr(modeling_auto, name).items())
    return {
        kind
        for kind, classes in pairs
        if architecture in ((classes,) if isinstance(classes, str) else classes)
    }


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_table_knows_every_model_type_of_its_class(name: str) -> None:
    assert registered(name) <= set(ARCHITECTURES[name].model_types)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_model_type_is_one_that_readers_know_as_this_model(table: Architecture) -> None:
    assert table.model_types
    names = (table.name, *table.aliases)
    ours = {kind for name in names for kind in registered(name)}
    assert set(table.model_types) <= ours | ELSEWHERE
    assert set(table.model_types) & set(CONFIG_MAPPING.keys()) <= ours
