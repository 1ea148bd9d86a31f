"""Steps of multi-token prediction of real models: the table claims every key, and all ranks together every tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.common import reference as references
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import OverlapError
from shardmerge.phase1_dump.sources.parameters import parameters_of
from shardmerge.phase2_merge import check
from tests.phase1_dump.dumped import (
    Piece,
    assembled,
    differing,
    dump_world,
    dumped,
    pieces_of,
    shapes_of,
    tiling_faults,
)
from tests.worlds import megatron_config
from tests.worlds.composites import VISION
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family, topologies_of
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.hybrid import IS_HYBRID
from tests.worlds.mtp import (
    DEEPSEEK_V3_MTP,
    HYBRID_STAGES,
    MTP_FAMILIES,
    NEMOTRON_H_MTP,
    can_build,
    write_mtp_checkpoint,
)
from tests.worlds.topology import SINGLE, Topology
from tests.worlds.vision_language import language_model_of

BUILT = tuple(family for family in MTP_FAMILIES if can_build(family))
CELLS = [
    pytest.param(family, topology, id=f"{family.name}-{topology.name}")
    for family in BUILT
    for topology in (*topologies_of(family), *(HYBRID_STAGES if family.mamba else ()))
]
DECODER = "backbone.layers."
# E embedding, t a layer of the decoder, m a step, L output
LAYOUTS = [
    ("Ettt|tmmL", Topology(pp=2), 1),  # megatron's own way: on the last stage
    ("Ett|tt|mmL", Topology(pp=3), 2),  # with the output, but without layers
    ("Ett|tt|mm|L", Topology(pp=4), 2),  # by themselves
    ("Et|t|t|tmm||L", Topology(pp=3, vpp=2), 0),  # on the first rank, in a chunk with an embedding of its own
    ("Et|t|tt|mmL", Topology(pp=2, vpp=2, ep=2, dp=2), 1),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family: a checkpoint as published ones are."""
    folder = tmp_path_factory.mktemp("mtp")
    return {family.name: write_mtp_checkpoint(family, folder / family.name) for family in MTP_FAMILIES}


def table(checkpoint: Path) -> Blueprint:
    """The table of the project, bound to a checkpoint."""
    known = references.read(checkpoint)
    return blueprint(known.config, known.tensors)


def claims(
    family: Family, topology: Topology, checkpoint: Path, te: bool = False
) -> tuple[set[str], set[str]]:
    """(keys that no row claims, names of the tensors that rows claim for the others), of all ranks together."""
    architecture = table(checkpoint)
    unclaimed: set[str] = set()
    names: set[str] = set()
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            for chunk in build_model(family, topology, te=te):
                for parameter in parameters_of(language_model_of(chunk), rank):
                    claim = architecture.claim(parameter.key)
                    if claim is None:
                        unclaimed.add(parameter.key)
                    else:
                        names.update(tensor.name for tensor in claim.tensors)
    return unclaimed, names


def filled(family: Family, topology: Topology, out: Path, checkpoint: Path) -> list[Piece]:
    """Dump all ranks with weights that are a function of name and place; all pieces, loaded."""
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            dumped(chunks, out, checkpoint)
    return list(pieces_of(out, load=True))


def shapes_held(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """What ranks hold of a checkpoint: all but copies."""
    copies = table(checkpoint).copies()
    return {name: shape for name, shape in shapes_listed(checkpoint).items() if name not in copies}


def shapes_listed(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """What a checkpoint holds of its language model."""
    return {name: shape for name, shape in shapes_of(checkpoint).items() if not name.startswith(VISION)}


@pytest.mark.parametrize("family", MTP_FAMILIES, ids=lambda family: family.name)
def test_the_table_expects_what_published_checkpoints_hold(
    family: Family, checkpoints: dict[str, Path]
) -> None:
    assert table(checkpoints[family.name]).shapes() == shapes_listed(checkpoints[family.name])


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CELLS)
def test_every_key_is_claimed_and_every_tensor_but_copies_is_held(
    family: Family, topology: Topology, checkpoints: dict[str, Path]
) -> None:
    unclaimed, names = claims(family, topology, checkpoints[family.name])

    assert unclaimed == set()
    assert names == shapes_held(checkpoints[family.name]).keys()


@pytest.mark.parametrize("family", BUILT, ids=lambda family: family.name)
def test_keys_of_transformer_engines_modules_are_claimed_too(
    family: Family, checkpoints: dict[str, Path], te_ranks: GlooRanks
) -> None:
    topology = Topology(tp=2, pp=2, ep=2, dp=2) if family.experts else Topology(tp=2, pp=2)

    unclaimed, names = te_ranks.call(claims, family, topology, checkpoints[family.name], True)

    assert unclaimed == set()
    assert names == shapes_held(checkpoints[family.name]).keys()


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CELLS)
def test_every_element_is_written_once_and_copies_not_at_all(
    family: Family, topology: Topology, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    dump_world(family, topology, tmp_path, checkpoints[family.name])

    assert tiling_faults(pieces_of(tmp_path), shapes_held(checkpoints[family.name])) == []


def lay_out(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build models as megatron-core's `pipeline_model_parallel_layout` says."""
    options = megatron_config._parallel_options
    monkeypatch.setattr(
        megatron_config,
        "_parallel_options",
        lambda *arguments: options(*arguments) | {"pipeline_model_parallel_layout": layout},
    )


@pytest.mark.parametrize(("layout", "topology", "stage"), LAYOUTS, ids=[layout for layout, _, _ in LAYOUTS])
def test_steps_are_where_a_layout_puts_them(
    layout: str,
    topology: Topology,
    stage: int,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stage that holds steps holds an embedding too, which the first stage owns."""
    lay_out(layout, monkeypatch)
    checkpoint = checkpoints[DEEPSEEK_V3_MTP.name]
    shapes, is_mtp = shapes_held(checkpoint), table(checkpoint).is_mtp

    assert claims(DEEPSEEK_V3_MTP, topology, checkpoint) == (set(), set(shapes))
    pieces = filled(DEEPSEEK_V3_MTP, topology, tmp_path / "laid-out", checkpoint)
    monkeypatch.undo()
    single = filled(DEEPSEEK_V3_MTP, SINGLE, tmp_path / "single", checkpoint)

    assert tiling_faults(pieces, shapes) == []
    assert {piece.rank // topology.stage_size for piece in pieces if is_mtp(piece.name)} == {stage}
    assert differing(assembled(pieces, shapes), assembled(single, shapes)) == []


@pytest.mark.skipif(not IS_HYBRID, reason="megatron-core 0.16 lays out no stages of hybrids")
@pytest.mark.parametrize("topology", HYBRID_STAGES, ids=lambda topology: topology.name)
@pytest.mark.parametrize("family", [one for one in MTP_FAMILIES if one.mamba], ids=lambda family: family.name)
def test_stages_of_a_hybrid_hold_the_layers_they_are_given_and_the_last_one_its_steps(
    family: Family, topology: Topology, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Bytes are those of one rank, also where the last chunk has no layer of the decoder."""
    shapes, is_mtp = shapes_held(checkpoints[family.name]), table(checkpoints[family.name]).is_mtp
    many, one = (
        filled(family, world, tmp_path / world.name, checkpoints[family.name]) for world in (topology, SINGLE)
    )

    stages = [chunk % topology.pp for chunk, held in enumerate(topology.stage_layers) for _ in range(held)]
    layers = {
        (int(piece.name.split(".")[2]), stage_of(piece, topology)) for piece in many if DECODER in piece.name
    }
    assert layers == set(enumerate(stages))
    assert {stage_of(piece, topology) for piece in many if is_mtp(piece.name)} == {topology.pp - 1}
    assert tiling_faults(many, shapes) == []
    assert differing(assembled(many, shapes), assembled(one, shapes)) == []


@pytest.mark.skipif(not IS_HYBRID, reason="megatron-core 0.16 lays out no stages of hybrids")
def test_a_second_head_beside_the_steps_of_a_hybrid_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HybridModel builds steps on a stage without the loss, and there a head that nothing trains and nothing ties.

    megatron-core 0.19 cannot save such a model either: "Invalid access pattern for ShardedTensor(
    key='output_layer.weight'". Its stage with the loss has no steps, and so does not know of their hidden states.
    """
    lay_out("Ett|tt|mm|L", monkeypatch)
    checkpoint, topology = checkpoints[NEMOTRON_H_MTP.name], Topology(pp=4, stage_layers=(2, 2, 0, 0))
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(NEMOTRON_H_MTP, topology)
            fill(chunks, NEMOTRON_H_MTP, topology, rank)
            if rank == 2:
                chunks[0].output_layer.weight.data.zero_()
            dumped(chunks, tmp_path, checkpoint)

    with pytest.raises(OverlapError, match=r"lm_head\.weight is covered twice: .* by ranks 2, 3"):
        check([tmp_path], hf_reference=checkpoint)


def stage_of(piece: Piece, topology: Topology) -> int:
    """The pipeline stage that wrote it."""
    return piece.rank // topology.stage_size


@pytest.mark.parametrize("family", BUILT, ids=lambda family: family.name)
def test_how_steps_are_cut_changes_no_byte(
    family: Family, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Also those with Mamba mixers and dense layers, which no importer puts into steps."""
    shapes = shapes_held(checkpoints[family.name])

    cut = Topology(tp=2, pp=2, ep=2, etp=2, dp=2) if family.experts else Topology(tp=2, pp=2)
    one, many = (
        filled(family, topology, tmp_path / topology.name, checkpoints[family.name])
        for topology in (SINGLE, cut)
    )

    assert len(many) > len(one) == len(shapes)
    assert differing(assembled(many, shapes), assembled(one, shapes)) == []


def test_a_step_repeats_both_embeddings_of_deepseek(checkpoints: dict[str, Path]) -> None:
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"

    assert table(checkpoints["deepseek_v3_mtp"]).copies() == {
        "model.layers.4.embed_tokens.weight": embedding,
        "model.layers.4.shared_head.head.weight": head,
        "model.layers.5.embed_tokens.weight": embedding,
        "model.layers.5.shared_head.head.weight": head,
    }


def test_layers_of_all_steps_of_a_hybrid_are_numbered_through(checkpoints: dict[str, Path]) -> None:
    """Two steps of attention and experts: what joins the embedding is on layers 0 and 2, final norms on 1 and 3."""
    names = [name for name in table(checkpoints["nemotron_h_latent_mtp"]).shapes() if name.startswith("mtp.")]

    found = {tuple(name.split(".")[2:4]) for name in names if ".mixer." not in name}

    assert sorted(found) == [
        *[("0", part) for part in ("eh_proj", "enorm", "hnorm", "norm")],
        *[("1", part) for part in ("final_layernorm", "norm")],
        *[("2", part) for part in ("eh_proj", "enorm", "hnorm", "norm")],
        *[("3", part) for part in ("final_layernorm", "norm")],
    ]
