"""Every architecture at every topology, rank by rank: the pieces tile what transformers would write, exactly once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shardmerge.common.errors import OutputExistsError
from shardmerge.common.manifest import read
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world, pieces_of, shapes_of, tiling_faults
from tests.worlds.composites import VISION
from tests.worlds.families import Family, by_name, topologies_of
from tests.worlds.mtp import BUILT
from tests.worlds.topology import SINGLE, Topology

CELLS = [
    pytest.param(family, topology, id=f"{family.name}-{topology.name}")
    for family in BUILT
    for topology in topologies_of(family)
]


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CELLS)
def test_every_element_of_every_tensor_is_written_exactly_once(
    family: Family,
    topology: Topology,
    references: References,
    tmp_path: Path,
    tested: Callable[[str, str, str], None],
) -> None:
    tested(family.architecture, topology.name, "coverage")
    listed = shapes_of(references.weights(family.name))
    expected = {name: shape for name, shape in listed.items() if not name.startswith(VISION)}

    dump_world(family, topology, tmp_path, references.config(family.name))

    pieces = list(pieces_of(tmp_path))
    assert tiling_faults(pieces, expected) == []
    for piece in pieces:
        assert (piece.offset is None) == (piece.shape == expected[piece.name])
        assert piece.file.startswith("whole-" if piece.offset is None else "split-")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"rank-{rank:05d}" for rank in range(topology.world_size)
    }


@pytest.mark.parametrize("missing", ["model.norm.weight", "model.layers.3.mlp.experts.7.down_proj.weight"])
def test_the_tiling_check_notices_a_tensor_that_is_not_written(
    missing: str, references: References, tmp_path: Path
) -> None:
    dump_world(by_name("qwen3_moe"), SINGLE, tmp_path, references.config("qwen3_moe"))
    pieces = [piece for piece in pieces_of(tmp_path) if piece.name != missing]

    expected = shapes_of(references.weights("qwen3_moe"))

    assert tiling_faults(pieces, expected) == [f"{missing}: elements covered [0] times"]


def test_the_tiling_check_notices_a_piece_that_is_written_twice(
    references: References, tmp_path: Path
) -> None:
    dump_world(by_name("llama"), Topology(tp=2), tmp_path, references.config("llama"))
    pieces, expected = list(pieces_of(tmp_path)), shapes_of(references.weights("llama"))
    again = next(piece for piece in pieces if piece.name == "model.layers.2.self_attn.o_proj.weight")

    assert tiling_faults([*pieces, again], expected) == [f"{again.name}: elements covered [2] times"]


def test_whole_files_are_shards_that_hugging_face_readers_load(
    references: References, tmp_path: Path
) -> None:
    family, expected = by_name("qwen3_moe"), shapes_of(references.weights("qwen3_moe"))
    dump_world(family, Topology(tp=2, ep=2), tmp_path, references.config("qwen3_moe"))

    loaded = {}
    for file in tmp_path.glob("rank-*/whole-*.safetensors"):
        loaded.update(load_file(file))

    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()}.items() <= expected.items()
    experts = [name for name in expected if ".experts." in name]
    assert experts
    assert loaded.keys() >= set(experts)


def test_manifests_say_what_the_files_hold(references: References, tmp_path: Path) -> None:
    topology = Topology(tp=2, pp=2, ep=2)
    dump_world(by_name("deepseek_v3"), topology, tmp_path, references.config("deepseek_v3"))

    from_files = {
        (p.rank, p.file, p.name, p.offset or (0,) * len(p.shape), p.shape) for p in pieces_of(tmp_path)
    }
    from_manifests = set()
    for rank in range(topology.world_size):
        manifest = read(tmp_path / f"rank-{rank:05d}" / "manifest.json")
        for one in manifest.placed():
            where = one.rectangle.global_offset, one.rectangle.local_shape
            from_manifests.add((rank, manifest.files[one.file].name, one.rectangle.name, *where))

    assert from_manifests == from_files


def test_a_rank_that_was_dumped_is_not_dumped_again(references: References, tmp_path: Path) -> None:
    family = by_name("llama")
    dump_world(family, SINGLE, tmp_path, references.config("llama"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(OutputExistsError, match="rank-00000") as caught:
        dump_world(family, SINGLE, tmp_path, references.config("llama"))

    assert caught.value.exit_code == 6
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
