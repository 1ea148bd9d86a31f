"""A language model beside a vision tower, from disk: the tower is left out if the caller says so, never without."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shardmerge.common import manifest
from shardmerge.common.errors import UnsupportedCheckpointError
from shardmerge.phase1_dump import dump_checkpoint
from shardmerge.phase2_merge import merge
from tests.phase1_dump.checkpoint.test_same_as_live import files, reference_of
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, filled, save
from tests.worlds.topology import Topology

TOPOLOGY = Topology(tp=2, pp=2)


def save_and_dump(rank: int, name: str, spelling: Spelling, reference: Path, out: Path) -> None:
    """Be one rank: save the composite, and dump its language model alive."""
    from shardmerge.phase1_dump import dump

    chunks = filled(rank, by_name(name), TOPOLOGY)
    save(chunks, out / "iter_0000007", spelling)
    dump(chunks, out / "live", hf_reference=reference, run_id="run", step=7, drop_vision=True)


def left_beside(dump: Path) -> int:
    """How many tensors of a vision tower the ranks of a dump say that they left out."""
    manifests = [manifest.read(path) for path in dump.glob("rank-*/manifest.json")]
    counts = [one.drops.items() for one in manifests]
    return sum(count for drops in counts for reason, count in drops if "vision" in reason)


def keys_of_the_tower(checkpoint: Path) -> int:
    """How many tensors of a checkpoint are of the tower, by its own name for it."""
    held = pickle.loads((checkpoint / ".metadata").read_bytes()).state_dict_metadata
    return sum(key.startswith("vision_model.") and hasattr(value, "chunks") for key, value in held.items())


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_a_composite_from_disk_becomes_what_its_live_model_becomes(
    name: str, ranks: GlooRanks, tmp_path: Path
) -> None:
    reference = reference_of(by_name(name), tmp_path)
    ranks.run(save_and_dump, TOPOLOGY, name, Spelling(), reference, tmp_path)
    checkpoint = tmp_path / "iter_0000007"

    with pytest.raises(UnsupportedCheckpointError, match=r"beside the language model.*--drop-vision"):
        dump_checkpoint(checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run")
    assert not (tmp_path / "disk").exists()

    dump_checkpoint(checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run", drop_vision=True)
    assert left_beside(tmp_path / "disk") == keys_of_the_tower(checkpoint) > 0
    for dumped in ("live", "disk"):
        out = tmp_path / f"of-{dumped}"
        merge(
            [tmp_path / dumped], out, hf_reference=reference, layout="canonical", workers=1, allow=["vision"]
        )
    assert files(tmp_path / "of-disk") == files(tmp_path / "of-live")
