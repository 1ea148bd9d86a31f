"""At the true sizes of published models a table expects as many parameters and tensors as was published.

Only config.json is computed with. An exact number leaves no place for a wrong shape, a missing tensor or a layer of
another kind. transformers, which does not know the tables, counts the same without allocating anything.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
import transformers

from shardmerge.common.architectures import TABLES, Blueprint, blueprint, table_of
from tests.common.published_models import MODELS, Published
from tests.common.published_words import DEEPSEEK_V32, GLM_5, Json, llama4
from tests.scale.models import NEMOTRON_3_SUPER
from tests.worlds.checkpoints import KIMI

OTHERS = (DEEPSEEK_V32, GLM_5, llama4(16, 1), NEMOTRON_3_SUPER)  # the last is counted by tests/scale
BESIDE = ("visual", "vision", "projector")
NOT_IN_TRANSFORMERS = "BailingMoeV2ForCausalLM"
OF_TRANSFORMERS = tuple(one for one in MODELS if NOT_IN_TRANSFORMERS not in one.config["architectures"])


def table(said: Json, *, with_copies: bool = False) -> Blueprint:
    """The table of a config.json, beside a reference that holds copies of both embeddings or none."""
    if not with_copies:
        return blueprint(said)
    step = f"model.layers.{said['num_hidden_layers']}."
    return blueprint(said, [f"{step}embed_tokens.weight", f"{step}shared_head.head.weight"])


def parameters(bound: Blueprint, *, steps: bool = True) -> int:
    families = (family for family in bound.families() if steps or not bound.is_mtp(family.names[0]))
    return sum(prod(family.shape) * len(family.names) for family in families)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_published_model_has_as_many_parameters_as_its_table_expects(model: Published) -> None:
    bound = table(model.config, with_copies=model.with_copies)
    assert parameters(bound) == model.parameters - model.vision, model.source
    if model.tensors is not None:
        assert bound.num_tensors() == model.tensors


def test_every_table_is_counted_at_the_true_size_of_a_published_model() -> None:
    counted = {table_of(said) for said in (*(model.config for model in MODELS), *OTHERS)}
    assert [table.name for table in TABLES if table not in counted] == []


@pytest.mark.sampled
@pytest.mark.parametrize("model", OF_TRANSFORMERS, ids=lambda model: model.name)
def test_transformers_builds_as_many_parameters_of_the_same_config_json(model: Published) -> None:
    """Without steps, which it does not build. Beside a language model it counts a tower as published."""
    language, vision = counted_by_transformers(model.config)
    assert parameters(table(model.config), steps=False) == language
    if model.vision:
        assert vision == model.vision


def counted_by_transformers(said: Json) -> tuple[int, int]:
    """How many parameters there are of the language model, and of what stands beside it; router biases are buffers."""
    kind: Any = getattr(transformers, KIMI.get(said["architectures"][0], said["architectures"][0]))
    known = {key: value for key, value in said.items() if key != "architectures"}
    with torch.device("meta"):
        model = kind(kind.config_class(**known))
    biases = {name: bias for name, bias in model.named_buffers() if "e_score_correction_bias" in name}
    sizes = {name: one.numel() for name, one in {**dict(model.named_parameters()), **biases}.items()}
    vision = sum(size for name, size in sizes.items() if any(part in name for part in BESIDE))
    return sum(sizes.values()) - vision, vision


def test_glm_5_is_published_without_copies_of_its_embeddings() -> None:
    """The Hub says 753,864,139,008 parameters of zai-org/GLM-5."""
    copies = 2 * 154880 * 6144
    assert parameters(table(GLM_5, with_copies=True)) == 753864139008 + copies


def test_a_step_of_deepseek_v32_is_that_of_v3_with_an_indexer() -> None:
    """The Hub says 685,355,329,792 parameters of deepseek-ai/DeepSeek-V3.2; the table has no rows of its step."""
    step = 684489845504 - 671026419200
    indexer = 8192 * 1536 + 128 * 7168 + 64 * 7168 + 2 * 128  # wq_b, wk, weights_proj, k_norm
    assert parameters(table(DEEPSEEK_V32)) + step + indexer == 685355329792


def test_both_llama_4_have_the_same_vision_beside_their_text() -> None:
    """The Hub says 108,641,793,536 parameters of Scout; 401,583,781,376 of Maverick is what its hosts count."""
    scout, maverick = (parameters(table(llama4(*one))) for one in ((16, 1), (128, 2)))
    assert 108641793536 - scout == 401583781376 - maverick == 871932416
