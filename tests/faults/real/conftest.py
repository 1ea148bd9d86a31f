"""Two dumps of real models, made once and copied for every test, and how a spoiled one is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import ShardmergeError
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, merge
from tests.faults.real.rewriting import Change, rewrite
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.topology import Topology

EXPERTS = Topology(tp=2, pp=2, ep=2, dp=2)  # rank 5: pp 1, tp 1, ep 1; layers 2-3, experts 4-7
PIECES = Topology(tp=4)  # down_proj [72, 112]: rank r holds columns 28 r to 28 r + 28


@dataclass(frozen=True, slots=True)
class Victim:
    """A dump that a test may spoil, and its reference."""

    folder: Path

    @property
    def dump(self) -> Path:
        return self.folder / "dump"

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def rank(self, rank: int) -> Path:
        return self.dump / f"rank-{rank:05d}"

    def rewrite(self, ranks: range | list[int], change: Change) -> None:
        for rank in ranks:
            rewrite(self.rank(rank), change)

    def refused(self, kind: type[ShardmergeError], exit_code: int) -> Any:
        """The error that merge and check raise alike; no output appears."""
        with pytest.raises(kind) as error:
            merge([self.dump], self.folder / "out", hf_reference=self.reference, workers=1)
        assert error.value.exit_code == exit_code
        assert not (self.folder / "out").exists()
        with pytest.raises(kind) as again:
            check([self.dump], hf_reference=self.reference)
        assert again.value.facts() == error.value.facts()
        return error.value


def dump_world(name: str, topology: Topology, out: Path, reference: Path, **generation: Any) -> None:
    """Dump every rank of a fake world with weights that tell where they belong."""
    family = by_name(name)
    told: dict[str, Any] = {"run_id": "run-1", "step": 100, "attempt": "0"} | generation
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            dump(chunks, out, hf_reference=reference, **told)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`experts`, `pieces` and `one_stage` (the same model and world size as experts, laid out otherwise)."""
    folder = tmp_path_factory.mktemp("sound")
    for name, family, topology in (
        ("experts", "qwen3_moe", EXPERTS),
        ("pieces", "llama", PIECES),
        ("one_stage", "qwen3_moe", Topology(tp=2, ep=2, dp=4)),
    ):
        weights = write_hf_checkpoint(by_name(family), folder / name / "weights")
        (folder / name / "reference").mkdir()
        shutil.copy(weights / "config.json", folder / name / "reference")
        dump_world(family, topology, folder / name / "dump", folder / name / "reference")
    return folder


@pytest.fixture
def victim(sound: Path, tmp_path: Path) -> Callable[[str], Victim]:
    """`victim("experts")`: a copy to spoil."""

    def copy(name: str) -> Victim:
        for part in ("dump", "reference"):
            shutil.copytree(sound / name / part, tmp_path / part)
        return Victim(tmp_path)

    return copy
