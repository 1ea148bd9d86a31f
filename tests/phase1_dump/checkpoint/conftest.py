"""A checkpoint of a real model on eight ranks, saved once and copied for every test that spoils it."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from shardmerge.phase1_dump import dump_checkpoint
from shardmerge.phase1_dump.dump_torch_dist import DumpedCheckpoint
from tests.worlds.checkpoints import write_config
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, filled, save, save_filled
from tests.worlds.topology import Topology

FAMILY = by_name("qwen3_moe")
TOPOLOGY = Topology(tp=2, pp=2, ep=2, dp=2)
SHARE_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that a test may spoil, and the reference of its model."""

    path: Path
    reference: Path

    def dump(self, out: Path, **options: Any) -> DumpedCheckpoint:
        """Dump it."""
        given: dict[str, Any] = {
            "hf_reference": self.reference,
            "run_id": "run",
            "max_share_bytes": SHARE_BYTES,
        }
        return dump_checkpoint(self.path, out, **given | options)

    def edit(self, change: Callable[[Any], object]) -> None:
        """Change what `.metadata` says, with torch's own classes."""
        path = self.path / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        change(metadata)
        path.write_bytes(pickle.dumps(metadata))

    def place(self, key: str, number: int = 0) -> tuple[MetadataIndex, Path, int, int]:
        """Index, file, begin and length of a chunk of a tensor."""
        metadata = pickle.loads((self.path / ".metadata").read_bytes())
        index, info = [item for item in metadata.storage_data.items() if item[0].fqn == key][number]
        return index, self.path / info.relative_path, info.offset, info.length


@pytest.fixture(scope="session")
def original(ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The checkpoint, which nobody changes."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "hf").mkdir()
    saved = Saved(folder / "iter_0000007", write_config(FAMILY, folder / "hf"))
    ranks.run(save_filled, TOPOLOGY, FAMILY, TOPOLOGY, saved.path, Spelling(experts=True))
    return saved


def save_moved(rank: int, out: Path) -> None:
    """Be one rank of the same model some steps later, when every number is another one, and save it."""
    chunks = filled(rank, FAMILY, TOPOLOGY)
    with torch.no_grad():
        for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
            parameter.add_(1)
    save(chunks, out, Spelling(experts=True))


@pytest.fixture(scope="session")
def later(original: Saved, ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A checkpoint of the same layout and file sizes with other numbers, which nobody changes."""
    folder = tmp_path_factory.mktemp("later")
    saved = Saved(folder / original.path.name, original.reference)
    ranks.run(save_moved, TOPOLOGY, saved.path)
    return saved


@pytest.fixture
def saved(original: Saved, tmp_path: Path) -> Saved:
    """A copy of it."""
    shutil.copytree(original.path, tmp_path / original.path.name)
    return Saved(tmp_path / original.path.name, original.reference)
