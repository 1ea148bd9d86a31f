"""Experts must be where their layer says they are: a permuted, shifted or short list of ids is caught, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common import reference
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import ExpertIdsError, MissingTensorError
from shardmerge.phase1_dump.rectangles.claims import Claimed, claim_all
from shardmerge.phase1_dump.rectangles.expert_ids import check_expert_ids
from shardmerge.phase1_dump.sources.modules import local_experts
from shardmerge.phase1_dump.sources.parameters import parameters_of
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import Topology

TOPOLOGY = Topology(ep=2, dp=2)


@pytest.fixture
def model() -> Iterator[GPTModel]:
    """Rank 1 of two: it holds experts 4 to 7 of every layer."""
    with fake_world(TOPOLOGY, 1):
        yield build_model(by_name("qwen3_moe"), TOPOLOGY)[0]


@pytest.fixture
def table(references: References) -> Blueprint:
    return blueprint(reference.read(references.config("qwen3_moe")).config)


@pytest.fixture
def claimed(model: GPTModel, table: Blueprint) -> list[Claimed]:
    (claimed,), _ = claim_all([parameters_of(model, 1)], table, 1)
    return claimed


FORMS: dict[str, Callable[[list[int]], Any]] = {"list": list, "tensor": torch.tensor, "tuple": tuple}
WRONG = {
    "permuted": [4, 6, 5, 7],
    "of another rank": [0, 1, 2, 3],
    "round robin": [1, 3, 5, 7],
    "too short": [4, 5, 6],
    "too long": [4, 5, 6, 7, 8],
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_agree_are_accepted_in_any_form(
    form: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    for layer in model.decoder.layers:
        assert list(layer.mlp.local_expert_indices) == [4, 5, 6, 7]
        layer.mlp.local_expert_indices = FORMS[form]([4, 5, 6, 7])

    assert dumped(model, tmp_path, references.config("qwen3_moe")).rank == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WRONG)
def test_ids_that_disagree_are_an_error_that_names_the_layer(
    kind: str, form: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.decoder.layers[2].mlp.local_expert_indices = FORMS[form](WRONG[kind])

    message = refused_and_recorded(ExpertIdsError, 4, model, tmp_path / "out", references.config("qwen3_moe"))

    assert message.startswith("decoder.layers.2.mlp on rank 1: the checkpoint keys name experts [4, 5, 6, 7]")
    assert f"local_expert_indices are {WRONG[kind]}" in message


def test_keys_shifted_by_one_expert_are_an_error(
    model: GPTModel, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if megatron-core numbered experts otherwise than the layer does."""
    experts = model.decoder.layers[1].mlp.experts
    described = experts.sharded_state_dict

    def shifted(*args: Any, **kwargs: Any) -> Any:
        found = described(*args, **kwargs)
        for entry in found.values():
            if hasattr(entry, "replica_id"):
                head, tail = entry.key.split(".experts.experts.")
                number, rest = tail.split(".", 1)
                entry.key = f"{head}.experts.experts.{4 + (int(number) + 1) % 4}.{rest}"
        return found

    monkeypatch.setattr(experts, "sharded_state_dict", shifted)

    message = refused_and_recorded(ExpertIdsError, 4, model, tmp_path / "out", references.config("qwen3_moe"))

    assert message.startswith("decoder.layers.1.mlp on rank 1: the checkpoint keys name experts [5, 6, 7, 4]")


def test_an_expert_without_its_down_projection_is_an_error(
    model: GPTModel, claimed: list[Claimed], table: Blueprint
) -> None:
    left = [one for one in claimed if ".3.mlp.experts.experts.6.linear_fc2" not in one.parameter.key]
    assert len(left) == len(claimed) - 1

    with pytest.raises(MissingTensorError, match=r"rank 1, which holds expert 6") as caught:
        check_expert_ids(local_experts(model), left, table, 1)

    assert caught.value.tensor == "model.layers.3.mlp.experts.6.down_proj.weight"
    assert caught.value.exit_code == 3


def test_a_layer_without_any_expert_is_an_error(
    model: GPTModel, claimed: list[Claimed], table: Blueprint
) -> None:
    left = [one for one in claimed if ".0.mlp.experts." not in one.parameter.key]

    with pytest.raises(ExpertIdsError, match=r"^decoder\.layers\.0\.mlp on rank 1"):
        check_expert_ids(local_experts(model), left, table, 1)


def test_a_layer_and_keys_that_agree_on_a_gap_are_an_error(
    model: GPTModel, claimed: list[Claimed], table: Blueprint
) -> None:
    """The second of four local experts is not described, and the layer does not list it either."""
    model.decoder.layers[1].mlp.local_expert_indices = [4, 6, 7]
    left = [one for one in claimed if one.claim.layer != 1 or one.claim.expert != 5]

    with pytest.raises(ExpertIdsError, match=r"^decoder\.layers\.1\.mlp on rank 1"):
        check_expert_ids(local_experts(model), left, table, 1)


def test_a_missing_expert_in_the_middle_is_an_error(
    model: GPTModel, claimed: list[Claimed], table: Blueprint
) -> None:
    left = [one for one in claimed if one.claim.layer != 1 or one.claim.expert != 5]

    with pytest.raises(ExpertIdsError, match=r"name experts \[4, 6, 7\]"):
        check_expert_ids(local_experts(model), left, table, 1)
