"""The one comparison of a config.json with what was dumped and what is held."""

from __future__ import annotations

from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import MismatchError, MissingTensorError
from shardmerge.common.manifest_facts import Facts
from shardmerge.phase2_merge.proof.config.shapes import Comparison, against_facts, against_tensors
from tests.dumps.dumps import FFN, dense_config, shapes_of

REQUIRED = "config.json with the table of Qwen3ForCausalLM"


ONE_LAYER = shapes_of(dense_config(1))


def test_tensors_as_described_are_no_news() -> None:
    assert against_tensors(blueprint(dense_config(1)), ONE_LAYER) == Comparison()


def test_problems_are_in_the_order_of_the_table_and_strangers_in_their_own() -> None:
    held = ONE_LAYER | {"model.embed_tokens.weight": (25, 8), "z": (1,), "b": (1,)}
    del held["model.layers.0.mlp.up_proj.weight"]
    compared = against_tensors(blueprint(dense_config(1)), held)
    assert [error.facts() for error in compared.problems] == [
        MismatchError("model.embed_tokens.weight", "shape", "[25, 8]", "[24, 8]").facts(),
        MissingTensorError("model.layers.0.mlp.up_proj.weight", (FFN, 8), REQUIRED).facts(),
    ]
    assert compared.strange == ("z", "b")


def test_a_shape_that_nobody_can_tell_is_there_and_not_compared() -> None:
    assert against_tensors(blueprint(dense_config(1)), ONE_LAYER | {"lm_head.weight": None}) == Comparison()


def test_a_far_larger_model_is_one_mismatch() -> None:
    compared = against_tensors(blueprint(dense_config(10_000)), ONE_LAYER | {"strange": (1,)})
    (error,) = compared.problems
    assert isinstance(error, MismatchError)
    assert (error.what, error.got, error.expected, compared.strange) == (
        "the number of tensors it describes",
        "110,003",
        "about 15",
        (),
    )


def test_another_architecture_hides_its_dimensions_but_other_dimensions_are_all_told() -> None:
    described = blueprint(dense_config(1))
    facts = Facts(dimensions={"vocab": 23, "hidden": 9, "unheard_of": 1})
    (error,) = against_facts(described, "LlamaForCausalLM", facts)
    assert (error.what, error.got, error.expected) == (
        "architecture",
        "Qwen3ForCausalLM",
        "LlamaForCausalLM, as dumped",
    )
    told = [
        (error.what, error.got, error.expected)
        for error in against_facts(described, "Qwen3ForCausalLM", facts)
    ]
    assert told == [("hidden", "8", "9, as dumped"), ("vocab", "24", "23, as dumped")]
