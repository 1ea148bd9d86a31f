"""A manifest against its files, byte by byte, and what it says about where it came from."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest
import xxhash

from shardmerge.common.manifest import Manifest, read
from shardmerge.common.manifest_facts import Health
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world, pieces_of
from tests.phase1_dump.hand_made import raw
from tests.worlds.families import by_name
from tests.worlds.topology import Topology

TOPOLOGY = Topology(tp=2, pp=2, ep=2, dp=2)


@pytest.fixture(scope="module")
def out(references: References, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump")
    dump_world(by_name("deepseek_v3"), TOPOLOGY, folder, references.config("deepseek_v3"))
    return folder


def manifest(out: Path, rank: int) -> Manifest:
    return read(out / f"rank-{rank:05d}" / "manifest.json")


def test_every_row_points_at_its_bytes(out: Path) -> None:
    expected = {}
    for piece in pieces_of(out, load=True):
        assert piece.tensor is not None
        expected[piece.rank, piece.file, piece.name, piece.offset or (0,) * len(piece.shape)] = raw(
            piece.tensor
        )

    found = {}
    for rank in range(TOPOLOGY.world_size):
        one = manifest(out, rank)
        files = {file.name: (out / f"rank-{rank:05d}" / file.name).read_bytes() for file in one.files}
        for row in one.placed():
            file = one.files[row.file].name
            data = files[file][row.begin : row.end]
            assert row.xxh3_128 == xxhash.xxh3_128_hexdigest(data)
            found[rank, file, row.rectangle.name, row.rectangle.global_offset] = data
    assert found == expected


def test_files_are_listed_with_sizes_and_header_digests(out: Path) -> None:
    for rank in range(TOPOLOGY.world_size):
        folder, one = out / f"rank-{rank:05d}", manifest(out, rank)
        assert {file.name for file in one.files} | {"manifest.json"} == {
            path.name for path in folder.iterdir()
        }
        for file in one.files:
            data = (folder / file.name).read_bytes()
            assert file.num_bytes == len(data)
            assert file.header_bytes == 8 + int.from_bytes(data[:8], "little")
            assert file.header_xxh3_128 == xxhash.xxh3_128_hexdigest(data[: file.header_bytes])


def test_a_manifest_says_where_it_stands(out: Path) -> None:
    """Rank 5 is tp 1, dp 0, pp 1; of the experts ep 1."""
    found = manifest(out, 5)

    assert (found.run_id, found.step, found.attempt, found.rank, found.world_size) == ("run", 7, "0", 5, 8)
    assert found.coordinates == {"tp": 1, "cp": 0, "pp": 1, "dp": 0, "ep": 1, "etp": 0, "edp": 0}
    assert found.groups["tp"] == [4, 5]
    assert found.architecture == "DeepseekV3ForCausalLM"
    assert found.facts.dtype == "BF16"
    assert found.facts.dimensions is not None
    assert found.facts.dimensions["num_experts"] == 8
    assert found.producer["torch"] == version("torch")
    assert found.producer["megatron-core"] == version("megatron-core")


def test_names_and_dtypes_are_listed_once(out: Path) -> None:
    found = [manifest(out, rank) for rank in range(TOPOLOGY.world_size)]

    assert all(len(set(one.names)) == len(one.names) for one in found)
    assert {tuple(one.dtypes) for one in found} <= {("BF16",), ("BF16", "F32"), ("F32", "BF16")}
    assert any("F32" in one.dtypes for one in found)  # the router biases


def test_a_healthy_model_says_nothing_about_its_health(out: Path) -> None:
    assert [manifest(out, rank).health for rank in (3, 4)] == [Health(nonfinite=[], all_zero=[])] * 2


def test_fragments_are_readable_by_group_and_others_as_the_umask_says(out: Path) -> None:
    """The safetensors library leaves mode 0600, on which a merge under another account fails."""
    umask = os.umask(0o022)
    os.umask(umask)

    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o666 & ~umask}
