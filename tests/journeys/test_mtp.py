"""The whole river with steps of multi-token prediction: published names go through Megatron and come back equal.

transformers does not know these tensors; the checkpoints are made by hand (`tests.worlds.mtp`). The way in is
Model-Optimizer (`tests.worlds.mtp_oracle`) and megatron-core's own checkpoint, the way out is shardmerge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import save_file

from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.journeys.test_round_trip import dump_on_rank
from tests.phase1_dump.dumped import assembled, pieces_of, tiling_faults
from tests.phase1_dump.dumped import differing as differing_tensors
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import (
    HYBRID_STAGES,
    MTP_FAMILIES,
    can_build,
)
from tests.worlds.oracle import NOT_IMPORTED, load_model
from tests.worlds.topology import SINGLE, Topology

TOPOLOGIES = (
    SINGLE,
    Topology(tp=2),
    Topology(pp=2),
    Topology(pp=4),
    Topology(pp=2, vpp=2),
    Topology(etp=2, dp=2),
    Topology(tp=4, ep=2, dp=2),
    Topology(tp=2, pp=2, ep=2, dp=2),
)
HYBRID_TOPOLOGIES = (*(world for world in TOPOLOGIES if world.vpp == 1), *HYBRID_STAGES)
FAMILIES = tuple(
    family for family in MTP_FAMILIES if can_build(family) and family.architecture not in NOT_IMPORTED
)
CASES = [
    pytest.param(family, topology, id=f"{family.name}-{topology.name}")
    for family in FAMILIES
    for topology in (TOPOLOGIES if family.mamba is None else HYBRID_TOPOLOGIES)
]
Sources = Callable[[Family], tuple[Path, Path]]
Dumps = Callable[[Family, Topology], tuple[Path, Path]]


@pytest.fixture(scope="module")
def dumps(ranks: GlooRanks, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Dumps:
    """(family, topology) -> (its Hugging Face checkpoint, the dump of real ranks), each made once."""
    made: dict[tuple[str, str], Path] = {}

    def dump_of(family: Family, topology: Topology) -> tuple[Path, Path]:
        reference, torch_dist = sources(family)
        key = family.name, topology.name
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(key)) / "dump"
            ranks.run(dump_on_rank, topology, family, topology, torch_dist, reference, made[key])
        return reference, made[key]

    return dump_of


def dump_te_on_rank(
    rank: int, family: Family, topology: Topology, torch_dist: Path, reference: Path, out: Path
) -> None:
    """The same with Transformer Engine's modules: norms fused, experts grouped."""
    from shardmerge.phase1_dump import dump

    chunks = load_model(rank, family, topology, torch_dist, te=True)
    dump(chunks, out, hf_reference=reference, run_id="river", step=7)


def faults(reference: Path, dump: Path) -> list[str]:
    """What of the checkpoint is not in the fragments exactly once, or is there with other bytes; copies left out.

    Without phase two: fragments are read by the safetensors library and put together here.
    """
    expected = {name: tensor for name, tensor in read_hf_tensors(reference).items() if not _is_copy(name)}
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    pieces = list(pieces_of(dump, load=True))
    return tiling_faults(pieces, shapes) or differing_tensors(assembled(pieces, shapes), expected)


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CASES)
def test_every_byte_of_a_step_comes_back_from_real_ranks(
    family: Family, topology: Topology, dumps: Dumps, tmp_path: Path
) -> None:
    """Embeddings that a step repeats are in the output, though no rank writes them."""
    reference, dump = dumps(family, topology)
    merge([dump], tmp_path / "merged", hf_reference=reference, workers=1)
    assert differing(reference, tmp_path / "merged") == []


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CASES)
def test_fragments_hold_every_byte_of_a_step_but_copies(
    family: Family, topology: Topology, dumps: Dumps
) -> None:
    assert faults(*dumps(family, topology)) == []


@pytest.mark.parametrize(
    ("family", "topology"),
    [
        pytest.param(family, topology, id=f"{family.name}-{topology.name}")
        for family in FAMILIES
        for topology in (Topology(tp=2, pp=2, ep=2, dp=2), HYBRID_STAGES[-1])
        if family.mamba or not topology.stage_layers
    ],
)
def test_fragments_of_transformer_engines_modules_hold_the_same(
    family: Family, topology: Topology, te_ranks: GlooRanks, sources: Sources, tmp_path: Path
) -> None:
    reference, torch_dist = sources(family)
    te_ranks.run(dump_te_on_rank, topology, family, topology, torch_dist, reference, tmp_path)
    assert faults(reference, tmp_path) == []


def test_a_step_under_the_name_of_another_is_noticed(dumps: Dumps, tmp_path: Path) -> None:
    """The comparison is no formality: with two norms exchanged in the reference, both differ."""
    reference, dump = dumps(FAMILIES[-1], SINGLE)
    tensors = read_hf_tensors(reference)
    first, second = sorted(name for name in tensors if name.endswith(("enorm.weight", "hnorm.weight")))[:2]
    tensors |= {first: tensors[second], second: tensors[first]}
    save_file(tensors, tmp_path / "model.safetensors")
    assert faults(tmp_path, dump) == [first, second]


def _is_copy(name: str) -> bool:
    """A step of DeepSeek-V3 repeats both embeddings under names of its own."""
    return ".layers." in name and name.endswith(("embed_tokens.weight", "shared_head.head.weight"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_steps_transformers_reads_the_decoder_alone_and_is_told_of_none(
    family: Family, dumps: Dumps, tmp_path: Path
) -> None:
    reference, dump = dumps(family, SINGLE)
    out = tmp_path / "merged"
    merge([dump], out, hf_reference=reference, workers=1, drop_mtp=True)
    config: Any = transformers.AutoConfig.from_pretrained(out)
    assert config.num_nextn_predict_layers == 0
    assert getattr(config, "mtp_layers_block_type", []) == []
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(out, output_loading_info=True)
    assert (set(info["missing_keys"]), set(info["unexpected_keys"])) == (set(), set())
    assert model.config.num_hidden_layers == family.layers
