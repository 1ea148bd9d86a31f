"""Transformer Engine's own modules and the local ones hold the same weights, and give the same dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.common.manifest import read
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import assembled, differing, pieces_of, shapes_of, tiling_faults
from tests.phase1_dump.te_jobs import dump_filled, dump_float8, dump_full_query, dump_permuted
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import SINGLE, Topology


def written(out: Path, world_size: int) -> list[set[tuple[str, str]]]:
    """By rank: every rectangle and its checksum."""
    manifests = (read(out / f"rank-{rank:05d}" / "manifest.json") for rank in range(world_size))
    return [{(str(one.rectangle), one.xxh3_128) for one in manifest.placed()} for manifest in manifests]


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("qwen3_moe", SINGLE),
        ("qwen3_moe", Topology(tp=2, ep=2, dp=2)),
        ("qwen3_moe", Topology(tp=2, etp=2, ep=2, dp=2)),
        ("qwen3_moe", Topology(pp=2, vpp=2, tp=2, ep=2, dp=2)),
        ("mixtral", Topology(ep=4, dp=4)),
        ("llama", Topology(tp=2, pp=2)),
        ("nemotron_h", Topology(tp=2, etp=2, ep=2, dp=2)),
        ("nemotron_h_latent", Topology(tp=2, pp=2, ep=2)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_both_specs_give_the_same_rectangles_and_bytes(
    name: str, topology: Topology, te_ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    local, grouped = (
        te_ranks.call(dump_filled, name, topology, tmp_path / str(te), references.config(name), te)
        for te in (False, True)
    )

    assert (local, grouped) == (([], []) if name == "llama" else (["SequentialMLP"], ["TEGroupedMLP"]))
    assert written(tmp_path / "True", topology.world_size) == written(tmp_path / "False", topology.world_size)
    assert tiling_faults(pieces_of(tmp_path / "True"), shapes_of(references.weights(name))) == []


def test_latent_attention_cut_otherwise_adds_up_to_the_same_tensors(
    te_ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    """The down projections are cut in one spec and replicated in the other."""
    name, topology = "deepseek_v3", Topology(tp=2, ep=2, dp=2)
    expected = shapes_of(references.weights(name))
    for te in (False, True):
        te_ranks.call(dump_filled, name, topology, tmp_path / str(te), references.config(name), te)

    local, grouped = (list(pieces_of(tmp_path / str(te), load=True)) for te in (False, True))
    assert tiling_faults(grouped, expected) == []
    assert differing(assembled(grouped, expected), assembled(local, expected)) == []


def test_a_norm_that_the_hugging_face_model_lacks_is_refused(
    te_ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    """megatron-core 0.19 fuses one into a query projection without low rank; 0.16 builds what is published."""
    normed, kind, message = te_ranks.call(
        dump_full_query, tmp_path, references.config("deepseek_v3_full_query")
    )

    assert kind == ("ProblemsFoundError" if normed else "nothing")  # the norm of every layer
    assert not normed or "decoder.layers.0.self_attention.linear_q_proj.layer_norm_weight" in message
    assert not normed or "decoder.layers.3.self_attention.linear_q_proj.layer_norm_weight" in message


def test_grouped_experts_in_another_order_are_caught(
    te_ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    kind, message = te_ranks.call(dump_permuted, tmp_path, references.config("qwen3_moe"))

    assert kind == "ExpertIdsError"
    assert message.startswith("decoder.layers.1.mlp on rank 0: ")
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.failed.json"]


def test_a_float8_parameter_is_refused_by_name(
    te_ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    kind, message = te_ranks.call(dump_float8, tmp_path, references.config("qwen3_moe"))

    assert kind == "UnsupportedParameterError"
    assert message.startswith(
        "decoder.layers.2.mlp.experts.linear_fc2.weight5 on rank 0: it is a Float8Tensor "
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.failed.json"]
