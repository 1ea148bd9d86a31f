"""Training on two real ranks goes on at once: what is written are the values at the call, and no loss changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.jobs import trained
from tests.gpu.worlds import on_cpu
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import pieces_of, shapes_of, tiling_faults
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import Topology


def train(_rank: int, topology: Topology, folder: Path, how: str) -> dict[str, Any]:
    """A rank of the pool, which has joined its groups already."""
    with on_cpu():
        return trained(torch.device("cpu"), topology, folder, how)


@pytest.mark.parametrize(
    "topology", [Topology(dp=2), Topology(dp=2, ep=2)], ids=lambda topology: topology.name
)
def test_training_goes_on_as_without_a_dump(
    topology: Topology, ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    """DDP, the distributed optimizer, and parameters that are gathered in the next forward."""
    (tmp_path / "config").symlink_to(references.config("qwen3_moe"))
    plain, dumped = (ranks.run(train, topology, topology, tmp_path, how) for how in ("plain", "dumped"))
    assert len(plain[0]["losses"]) == 5
    assert len(set(plain[0]["losses"])) == 5
    assert [one["losses"] for one in dumped] == [one["losses"] for one in plain]
    assert all(one["same"] and one["moved"] for one in dumped)
    for way in ("here", "there"):
        assert tiling_faults(pieces_of(tmp_path / way), shapes_of(references.weights("qwen3_moe"))) == []
    manifest = json.loads((tmp_path / "here" / "rank-00001" / "manifest.json").read_bytes())
    assert 0 < manifest["statistics"]["seconds_stalled"] < 60
