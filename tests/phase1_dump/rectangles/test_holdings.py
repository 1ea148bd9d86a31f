"""What a rank holds: parts of one tensor joined by hand, and the rectangles of a live model against hand-made ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from shardmerge.common import reference
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.architectures.rows import Drop
from shardmerge.common.errors import (
    MismatchError,
    OverlapError,
    ProblemsFoundError,
    UnclaimedParameterError,
)
from shardmerge.phase1_dump.rectangles.claims import claim_all
from shardmerge.phase1_dump.rectangles.holdings import holdings_of
from shardmerge.phase1_dump.rectangles.parameter import Parameter
from shardmerge.phase1_dump.rectangles.parts import Part, bounds, join
from shardmerge.phase1_dump.source import Holding
from shardmerge.phase1_dump.sources.parameters import parameters_of
from shardmerge.phase1_dump.sources.process_groups import world_of
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE, Topology

NOTHING = torch.empty(0)
Box = tuple[tuple[int, ...], tuple[int, ...]]


def part(offset: tuple[int, ...], shape: tuple[int, ...]) -> Part:
    return Part(NOTHING, (0,) * len(offset), offset, shape)


def joined(*parts: Part) -> list[Box]:
    return [bounds(group) for group in join(parts)]


def table(path: Path) -> Blueprint:
    return blueprint(reference.read(path).config)


def held(name: str, topology: Topology, rank: int, path: Path) -> list[Holding]:
    """Everything a rank of a fake world holds."""
    with fake_world(topology, rank):
        (model,) = build_model(by_name(name), topology)
        world = world_of(model)
        (claimed,), _ = claim_all([parameters_of(model, rank)], table(path), rank)
        return list(holdings_of(claimed, table(path), world, lambda _: "BF16"))


def boxes(holdings: list[Holding], name: str) -> list[Box]:
    return [
        (one.rectangle.global_offset, one.rectangle.local_shape)
        for one in holdings
        if one.rectangle.name == name
    ]


def test_adjacent_rows_in_any_order_are_one_rectangle() -> None:
    assert joined(part((6, 0), (2, 5)), part((2, 0), (4, 5))) == [((2, 0), (6, 5))]


def test_rows_with_a_gap_are_two_rectangles() -> None:
    assert joined(part((0, 0), (2, 5)), part((4, 0), (2, 5))) == [((0, 0), (2, 5)), ((4, 0), (2, 5))]


def test_columns_side_by_side_are_one_rectangle() -> None:
    assert joined(part((0, 3), (2, 3)), part((0, 0), (2, 3))) == [((0, 0), (2, 6))]


def test_four_quarters_are_one_rectangle() -> None:
    quarters = [part((row, column), (2, 3)) for row in (2, 0) for column in (3, 0)]

    assert joined(*quarters) == [((0, 0), (4, 6))]


def test_an_l_is_two_rectangles_joined_along_rows() -> None:
    corner, below, beside = part((0, 0), (2, 3)), part((2, 0), (2, 3)), part((0, 3), (2, 3))

    assert joined(beside, below, corner) == [((0, 0), (4, 3)), ((0, 3), (2, 3))]


def test_a_gap_in_a_vector_is_kept() -> None:
    assert joined(part((0,), (3,)), part((3,), (1,)), part((6,), (2,))) == [((0,), (4,)), ((6,), (2,))]


# qwen3_moe: 8 heads in 2 groups, 12 rows a head. Fused rows 0-47 q, 48-59 k, 60-71 v; 72-119 q, 120-131 k, 132-143 v.
@pytest.mark.parametrize(
    ("rank", "q", "k"),
    [
        (0, [((0, 0), (36, 72))], []),
        (1, [((36, 0), (12, 72))], [((0, 0), (12, 72))]),
        (2, [((48, 0), (36, 72))], []),
        (3, [((84, 0), (12, 72))], [((12, 0), (12, 72))]),
    ],
)
def test_four_tensor_ranks_share_two_groups_of_a_live_model(
    rank: int, q: list[Box], k: list[Box], references: References
) -> None:
    found = held("qwen3_moe", Topology(tp=4), rank, references.config("qwen3_moe"))

    assert boxes(found, "model.layers.1.self_attn.q_proj.weight") == q
    assert boxes(found, "model.layers.1.self_attn.k_proj.weight") == k
    assert boxes(found, "model.layers.1.self_attn.v_proj.weight") == k


def test_a_rank_of_padding_holds_no_embedding(references: References) -> None:
    """211 words padded to 512 over four ranks: 128, 83, none, none."""
    found = [
        boxes(held("llama", Topology(tp=4), rank, references.config("llama")), "model.embed_tokens.weight")
        for rank in range(4)
    ]

    assert found == [[((0, 0), (128, 72))], [((128, 0), (83, 72))], [], []]


def test_routed_experts_are_replicated_apart_from_dense_tensors(references: References) -> None:
    """tp 4, ep 2, dp 2, rank 3: experts 4-7 also on 1, 5, 7; its quarter of o_proj on 7; norms on all eight."""
    found = held("qwen3_moe", Topology(tp=4, ep=2, dp=2), 3, references.config("qwen3_moe"))
    replicas = {one.rectangle.name: one.replicas for one in found}

    assert replicas["model.layers.0.mlp.experts.4.down_proj.weight"] == (1, 3, 5, 7)
    assert replicas["model.layers.0.self_attn.o_proj.weight"] == (3, 7)
    assert replicas["model.norm.weight"] == tuple(range(8))
    assert "model.layers.0.mlp.experts.3.down_proj.weight" not in replicas


@pytest.mark.parametrize(
    ("changes", "tensor", "got", "expected"),
    [
        ({"hidden_size": 64}, "model.embed_tokens.weight", "[256, 72]", "[256, 64] by config.json"),
        ({"vocab_size": 300}, "model.embed_tokens.weight", "[256, 72]", "[300, 72] by config.json"),
        (
            {"intermediate_size": 96},
            "model.layers.0.mlp.gate_proj.weight",
            "[112, 72]",
            "[96, 72] by config.json",
        ),
    ],
)
def test_a_model_that_is_not_config_jsons_is_a_mismatch(
    changes: dict[str, int], tensor: str, got: str, expected: str, references: References, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError) as caught:
        dump_world(by_name("llama"), SINGLE, tmp_path, references.edited("llama", **changes))

    assert (caught.value.tensor, caught.value.got, caught.value.expected) == (tensor, got, expected)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "rank-00000").exists()


def parameter(key: str) -> Parameter:
    return Parameter(key, key, torch.ones(72), (72,), (0,), (72,), (72,), (0,), pp_replica=0)


def test_the_same_parameter_in_two_chunks_is_an_overlap(references: References) -> None:
    bound = table(references.config("llama"))
    claimed, _ = claim_all([[parameter("decoder.final_layernorm.weight")]] * 2, bound, 0)

    with pytest.raises(OverlapError, match=r"model\.norm\.weight is covered twice") as caught:
        list(holdings_of(chain(*claimed), bound, world_of(torch.nn.Identity()), lambda _: "BF16"))

    assert caught.value.exit_code == 4


def test_one_tensor_under_two_keys_that_a_row_has_is_an_overlap(references: References) -> None:
    """Layer specs differ in the key of a norm: who puts two checkpoints together may have both."""
    keys = [
        "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.1.input_layernorm.weight",
    ]
    bound = table(references.config("llama"))
    (claimed,), _ = claim_all([[parameter(key) for key in keys]], bound, 0)

    with pytest.raises(OverlapError) as caught:
        list(holdings_of(claimed, bound, world_of(torch.nn.Identity()), lambda _: "BF16"))

    assert str(caught.value) == (
        f"model.layers.1.input_layernorm.weight is covered twice: {keys[0]} [0:72] and {keys[1]} [0:72], by rank 0. "
        "The model, or the checkpoint, has it twice: leave one of them out, and dump again."
    )


def test_two_chunks_built_as_the_same_virtual_stage_are_an_overlap(
    references: References, tmp_path: Path
) -> None:
    from tests.phase1_dump.dumped import dumped

    topology = Topology(pp=2, vpp=2)
    with fake_world(topology, 0):
        chunks = [build_model(by_name("llama"), topology)[0] for _ in range(2)]
        with pytest.raises(OverlapError, match="embed_tokens"):
            dumped(chunks, tmp_path, references.config("llama"))


def test_a_key_that_no_row_claims_is_an_error(references: References) -> None:
    with pytest.raises(
        UnclaimedParameterError, match=r"decoder\.layers\.0\.mlp\.novelty \[72\] on rank 3"
    ) as caught:
        claim_all([[parameter("decoder.layers.0.mlp.novelty")]], table(references.config("llama")), 3)

    assert caught.value.exit_code == 5


def test_every_key_that_no_row_claims_is_named_in_one_error(references: References) -> None:
    """Of all model chunks: a new table would otherwise be found key by key."""
    known = parameter("decoder.final_layernorm.weight")
    chunks = [[known, parameter("decoder.novelty")], [parameter("decoder.layers.3.mlp.strange")]]

    with pytest.raises(ProblemsFoundError) as caught:
        claim_all(chunks, table(references.config("llama")), 3)

    assert caught.value.exit_code == 5
    assert [type(one) for one in caught.value.problems] == [UnclaimedParameterError] * 2
    message = str(caught.value)
    assert "decoder.novelty [72] on rank 3 is claimed by no row of LlamaForCausalLM" in message
    assert "decoder.layers.3.mlp.strange [72] on rank 3 is claimed by no row of LlamaForCausalLM" in message


def test_keys_that_a_row_drops_are_counted_by_reason(references: References) -> None:
    bound = table(references.config("llama"))
    drop = Drop("decoder.layers.{layer}.mlp.novelty", "not in the published checkpoint")
    bound = Blueprint(replace(bound.architecture, drops=(drop,)), bound.config)
    keys = ["decoder.layers.0.mlp.novelty", "decoder.final_layernorm.weight", "decoder.layers.3.mlp.novelty"]

    (claimed,), drops = claim_all([map(parameter, keys)], bound, 0)

    assert [one.parameter.key for one in claimed] == ["decoder.final_layernorm.weight"]
    assert drops == {"not in the published checkpoint": 2}


@pytest.mark.parametrize("rows", [256, 211])
def test_rows_of_vocabulary_padding_are_told(references: References, rows: int) -> None:
    """A config.json with a vocabulary that is too small would leave out rows that were trained."""
    with fake_world(SINGLE, 0):
        (model,) = build_model(by_name("llama"), SINGLE, vocab_rows=rows)
        _, drops = claim_all([parameters_of(model, 0)], table(references.config("llama")), 0)
    told = {
        "rows 211 to 256 of embedding.word_embeddings.weight: vocabulary padding": 1,
        "rows 211 to 256 of output_layer.weight: vocabulary padding": 1,
    }
    assert drops == (told if rows == 256 else {})
